"""What the compiler says of the programs of a step: memory and collectives."""

import dataclasses
import logging
import re
import time

import jax

from epa_jax.planning import hlo
from epa_jax.planning.abstract import Call

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on the device that holds most.

    Attributes:
      arguments: what the program is given.
      outputs: what it returns, without what it writes over its arguments.
      donated: outputs that are written over arguments.
      temporaries: in between, at most.
      code: the program.
      beside: what else of the run is in memory meanwhile.
    """

    arguments: int
    outputs: int
    donated: int
    temporaries: int
    code: int
    beside: int

    @property
    def peak(self) -> int:
        """All of it."""
        own = self.arguments + self.outputs + self.temporaries + self.code
        return own + self.beside


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One program of a step, compiled.

    Attributes:
      name: as in `programs.Programs`.
      times: how often a step calls it.
      memory: None where the compiler found no way to fit it.
      needed: bytes that it would need there, or that it has.
      collectives: in one call.
      seconds: the compilation took.
    """

    name: str
    times: float
    memory: Memory | None
    needed: int
    collectives: list[hlo.Collective]
    seconds: float


def compile_call(call: Call, dynamic_trips: int, slices: int) -> Compiled:
    """Compiles a program for devices that are not here.

    Args:
      call: which.
      dynamic_trips: how often its loops run whose bound is data.
      slices: of the machine.

    Raises:
      jax.errors.JaxRuntimeError: the compiler failed for another reason than memory.
    """
    began = time.perf_counter()
    log.info('compiling %s ...', call.name)
    try:
        made = call.function.lower(*call.args).compile()
    except jax.errors.JaxRuntimeError as error:
        needed = out_of_memory(str(error))
        if needed is None:
            raise
        seconds = time.perf_counter() - began
        return Compiled(call.name, call.times, None, needed + call.beside, [], seconds)
    seconds = time.perf_counter() - began
    memory = _memory(made.memory_analysis(), call.beside)
    log.info('compiled %s in %.0f s: %.2f GB', call.name, seconds, memory.peak / 1e9)
    found = hlo.collectives(made.as_text() or '', dynamic_trips, slices)
    return Compiled(call.name, call.times, memory, memory.peak, found, seconds)


def _memory(stats: object, beside: int) -> Memory:
    def of(name: str) -> int:
        return int(getattr(stats, f'{name}_size_in_bytes', 0))

    return Memory(
        arguments=of('argument'),
        outputs=max(of('output') - of('alias'), 0),
        donated=of('alias'),
        temporaries=of('temp'),
        code=of('generated_code'),
        beside=beside,
    )


def out_of_memory(message: str) -> int | None:
    """Bytes that a program would need, from the compiler's refusal; None of others.

    Some of its refusals name temporaries alone.
    """
    if 'Ran out of memory' not in message or 'hbm' not in message.lower():
        return None
    used = re.search(r'(?:Used |\()([\d.]+)([KMGT]?)(?: of|\) exceeds)', message)
    scale = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
    return int(float(used[1]) * scale[used[2]]) if used else 0
