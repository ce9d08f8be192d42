"""What a compiled program sends between devices, read off its HLO.

XLA's own cost analysis counts the body of a loop once; here what is inside a loop counts
as often as the loop runs. How often is read off its condition. A loop whose bound is data,
such as that over chunks of scored tokens, counts `dynamic_trips` times.

TPUs have no reduce-scatter: the compiler fuses an all-reduce with the slice that a device
keeps of it, and sends what a reduce-scatter would. It counts as one.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence

from epa_jax.planning.groups import first_group

KINDS = (
    'all-gather',
    'reduce-scatter',
    'all-reduce',
    'all-to-all',
    'collective-permute',
    'ragged-all-to-all',
    'collective-broadcast',
)
_BYTES = {
    'pred': 1, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'bf16': 2, 'f16': 2, 's32': 4,
    'u32': 4, 'f32': 4, 's64': 8, 'u64': 8, 'f64': 8, 'c64': 8, 'c128': 16,
}  # fmt: skip
_HEADER = re.compile(r'(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$')
_OP = re.compile(r'\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$')
_CALLED = re.compile(
    r'(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)'
    r'|(?:branch_computations|called_computations)=\{([^}]*)\}'
)
_ARRAY = re.compile(r'([a-z]+[0-9]*)\[([0-9,]*)\]')


@dataclasses.dataclass(frozen=True)
class Op:
    """One instruction: its name, type, opcode, and the text after the bracket."""

    name: str
    shape: str
    opcode: str
    rest: str


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of one kind, size and place in the program.

    Attributes:
      kind: one of `KINDS`.
      shape: as XLA writes it.
      bytes: of the larger of what one device gives and gets.
      group: devices that take part together.
      count: how often it runs in one call of the program.
      in_loop: inside a loop.
      overlapped: started apart from its end, or fused with a computation other than the
        slice that makes it a reduce-scatter.
      crosses: leaves its slice, where there are several.
      source: the operation of the program that it comes from.
    """

    kind: str
    shape: str
    bytes: int
    group: int
    count: int
    in_loop: bool
    overlapped: bool
    crosses: bool
    source: str

    @property
    def sent(self) -> float:
        """Bytes that each device sends, over all runs, by the algorithm of rings."""
        share = (self.group - 1) / self.group
        if self.kind == 'collective-permute':
            share = 1.0
        elif self.kind == 'all-reduce':
            share *= 2
        return self.count * self.bytes * share


def computations(text: str) -> tuple[dict[str, list[Op]], str]:
    """Instructions by computation, and the name of the entry."""
    found: dict[str, list[Op]] = {}
    current: list[Op] = []
    entry = ''
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            current = found.setdefault(header[1], [])
            entry = header[1] if line.startswith('ENTRY') else entry
        else:
            op = _OP.match(line)
            if op:
                current.append(Op(*op.groups()))
    return found, entry


def array_bytes(shape: str) -> list[int]:
    """Bytes of every array in a type, tuples included."""
    return [
        _BYTES.get(dtype, 1) * math.prod(int(n) for n in dims.split(',') if n)
        for dtype, dims in _ARRAY.findall(shape)
    ]


def trip_count(condition: Sequence[Op], body: Sequence[Op], rest: str) -> int | None:
    """How often a loop runs; None where its bound is data.

    A counter that starts at 0 is compared with a constant, and the body adds a constant
    to it: 1, or more where XLA runs several rounds in one.

    Args:
      condition: instructions of its condition.
      body: of its body.
      rest: of the loop itself, which may know.
    """
    known = re.search(r'known_trip_count\W+n\W+(\d+)', rest)
    if known:
        return int(known[1])
    bounds = [value for op in condition if (value := _constant(op)) is not None]
    if not bounds:
        return None
    return -(-max(bounds) // _stride(condition, body))


def _constant(op: Op) -> int | None:
    match = re.match(r'(\d+)\)', op.rest) if op.opcode == 'constant' else None
    return int(match[1]) if match else None


def _stride(condition: Sequence[Op], body: Sequence[Op]) -> int:
    """What the body adds to the counter that the condition reads; 1 if it is not plain."""
    by_name = {op.name: op for op in body}
    read = [op for op in condition if op.opcode == 'get-tuple-element']
    if len(read) != 1 or not body:
        return 1
    (place,) = re.findall(r'index=(\d+)', read[0].rest)
    results = _operands(body[-1].rest)
    counter = by_name.get(results[int(place)]) if int(place) < len(results) else None
    if counter is None or counter.opcode != 'add':
        return 1
    added = [_constant(by_name[n]) for n in _operands(counter.rest) if n in by_name]
    return max([n for n in added if n], default=1)


def _operands(rest: str) -> list[str]:
    return re.findall(r'%([\w.\-]+)', rest.partition('), ')[0])


def collectives(text: str, dynamic_trips: int = 1, slices: int = 1) -> list[Collective]:
    """The collectives of a compiled program.

    Args:
      text: of its optimised HLO (`Compiled.as_text()`).
      dynamic_trips: how often loops run whose bound is data.
      slices: of the machine; devices are numbered slice by slice.
    """
    found, entry = computations(text)
    devices = re.search(r'num_partitions=(\d+)', text)
    size = int(devices[1]) if devices else 1
    seen: dict[tuple, int] = {}
    out: list[Collective] = []
    for op, times, loops, fused in _walk(found, entry, 1, 0, dynamic_trips, False):
        kind = op.opcode.removesuffix('-start')
        if kind not in KINDS:
            continue
        made = _collective(op, kind, times, loops > 0, fused, size, slices)
        if made.group == 1:
            continue
        # the steps of one overlapped collective repeat its channel
        channel = re.search(r'channel_id=(\d+)', op.rest)
        steps = re.search(r'chain_id', op.rest) is not None
        if channel and steps:
            key = (kind, channel[1], made.shape)
            if key in seen:
                earlier = out[seen[key]]
                if times < earlier.count:
                    out[seen[key]] = made
                continue
            seen[key] = len(out)
        out.append(made)
    return out


def _walk(
    found: Mapping[str, list[Op]],
    name: str,
    times: int,
    loops: int,
    dynamic: int,
    fused: bool,
) -> Iterator[tuple[Op, int, int, bool]]:
    """Every instruction with how often it runs, how many loops it is in, and if fused."""
    here = found.get(name, [])
    for op in here:
        yield _scattered(op, here) or op, times, loops, fused
        loop = op.opcode == 'while'
        inner = times * (_trips(found, op, dynamic) if loop else 1)
        for other in _called(op.rest):
            inside = found.get(other, [])
            alone = any(_scattered(one, inside) for one in inside)
            within = fused or op.opcode == 'async-start'
            within |= op.opcode == 'fusion' and not alone
            yield from _walk(found, other, inner, loops + loop, dynamic, within)


def _trips(found: Mapping[str, list[Op]], loop: Op, dynamic: int) -> int:
    condition = re.search(r'condition=%?([\w.\-]+)', loop.rest)
    body = re.search(r'body=%?([\w.\-]+)', loop.rest)
    trips = trip_count(
        found.get(condition[1], []) if condition else [],
        found.get(body[1], []) if body else [],
        loop.rest,
    )
    return dynamic if trips is None else trips


def _scattered(op: Op, body: Sequence[Op]) -> Op | None:
    """The reduce-scatter that an all-reduce is if nothing but its slice leaves a fusion."""
    if op.opcode != 'all-reduce' or body[-1].opcode != 'dynamic-slice':
        return None
    if _operands(body[-1].rest)[:1] != [op.name]:
        return None
    return dataclasses.replace(op, opcode='reduce-scatter', shape=body[-1].shape)


def _called(rest: str) -> list[str]:
    """Names of the computations that an instruction runs, conditions left out."""
    out = []
    for one, several in _CALLED.findall(rest):
        out += [one] if one else [name.strip(' %') for name in several.split(',')]
    return out


def _collective(
    op: Op, kind: str, times: int, in_loop: bool, fused: bool, size: int, slices: int
) -> Collective:
    attributes = op.rest.partition('), ')[2]
    sizes = array_bytes(op.shape) or [0]
    group = first_group(attributes, size)
    total = _moved(kind, sizes, op.opcode.endswith('-start'), len(group))
    source = re.search(r'op_name="([^"]*)"', op.rest)
    per_slice = max(size // slices, 1)
    shape = re.sub(r'\{[^}]*\}|/\*[^*]*\*/', '', op.shape)
    return Collective(
        kind=kind,
        shape=shape if len(shape) < 80 else shape[:77] + '...',
        bytes=total,
        group=len(group),
        count=times,
        in_loop=in_loop,
        overlapped=fused or op.opcode.endswith('-start'),
        crosses=len({member // per_slice for member in group}) > 1,
        source=source[1] if source else '',
    )


def _moved(kind: str, sizes: list[int], started: bool, group: int) -> int:
    """Bytes of the larger side; a start's type holds operands and results."""
    if kind == 'reduce-scatter':  # the type is what is left of the operand
        return max(sizes) if started else sum(sizes) * group
    if started and kind in ('all-gather', 'collective-permute'):
        return max(sizes)
    return sum(sizes)
