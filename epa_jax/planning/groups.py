"""Which devices take part together in a collective, as HLO writes it."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np


def first_group(attributes: str, size: int) -> list[int]:
    """The devices of the first group of a collective, from any of XLA's notations."""
    pairs = re.search(r'source_target_pairs=\{(.*?)\}\}', attributes)
    if pairs:
        return _ring(pairs[1] + '}')
    mesh = re.search(r'replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}', attributes)
    if mesh:
        axes = dict(re.findall(r"'?([\w.\-]+)'?=(\d+)", mesh[1]))
        names = [name.strip(" '") for name in mesh[2].split(',')]
        return _mesh_group({k: int(v) for k, v in axes.items()}, names)
    iota = re.search(
        r'replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', attributes
    )
    if iota:
        ids = np.arange(int(iota[1]) * int(iota[2])).reshape(_numbers(iota[3]))
        ids = ids.transpose(_numbers(iota[4])) if iota[4] else ids
        return ids.reshape(-1)[: int(iota[2])].tolist()
    listed = re.search(r'replica_groups=\{\{([\d,]+)\}', attributes)
    return list(_numbers(listed[1])) if listed else list(range(size))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(','))


def _mesh_group(axes: Mapping[str, int], names: Sequence[str]) -> list[int]:
    ids = np.arange(math.prod(axes.values())).reshape(tuple(axes.values()))
    where = tuple(slice(None) if name in names else 0 for name in axes)
    return ids[where].reshape(-1).tolist()


def _ring(text: str) -> list[int]:
    """Those that pass something on; at least two where anybody does."""
    pairs = [_numbers(pair) for pair in re.findall(r'\{(\d+,\d+)\}?', text)]
    return sorted(set(itertools.chain.from_iterable(pairs)))
