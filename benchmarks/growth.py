"""How a step's gradient grows with its shape: python -m benchmarks.growth.

A small model with random weights; one axis at a time away from the base point. The points
of an axis are compiled first and then measured in rounds, so that a slow minute of the
machine falls on all of them.
"""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks import flops, machine, records, synthetic, task, workload
from epa_jax.models import transformer

RESULTS = machine.REPO / 'benchmarks' / 'results' / 'growth.csv'


@dataclasses.dataclass(frozen=True)
class Point:
    """One shape of a step: tokens, prompts, vocabulary, weak negatives."""

    n_weak: int = 2
    vocab: int = 8192
    prompt: int = 128
    response: int = 64
    batch: int = 4


BASE = Point()
DEFAULT_SHAPE = 'small'
AXES: Mapping[str, Sequence[int]] = {
    'n_weak': (0, 1, 2, 4, 8, 16, 32),
    'vocab': (8192, 16384, 32768, 65536, 131072),
    'prompt': (32, 128, 512, 1024),
    'response': (16, 64, 256, 512),
    'batch': (1, 2, 4, 8, 16, 32),
}


def compiled(point: Point, shape: str) -> tuple[synthetic.Gradient, float]:
    """The gradient at a point, and the operations that it needs."""
    spec = synthetic.spec_of(shape, point.vocab)
    ratio = task.Ratio(1, point.n_weak)
    lengths = synthetic.Lengths(point.prompt, (point.response,) * (2 + point.n_weak))
    step = synthetic.groups([lengths] * point.batch, spec.vocab_size)
    goal = synthetic.objective(spec, ratio, transformer.Compute())
    params = transformer.init_params(spec, jax.random.key(0))
    found = synthetic.gradient(goal, params, synthetic.pack(step))
    return found, flops.of_groups(spec, workload.as_lists(step))


def axis(
    name: str, values: Sequence[int], base: Point, shape: str, rounds: int
) -> list[dict[str, Any]]:
    """A row for each value of one axis."""
    points = [dataclasses.replace(base, **{name: value}) for value in values]
    made = [compiled(point, shape) for point in points]
    runs = {str(v): gradient.run for v, (gradient, _) in zip(values, made, strict=True)}
    taken = synthetic.interleaved(runs, rounds)
    rows = []
    for value, (gradient, needed) in zip(values, made, strict=True):
        seconds = records.spread(taken[str(value)])
        rows.append(
            {
                'shape': shape,
                'axis': name,
                'value': value,
                'seconds': seconds.median,
                'seconds_low': seconds.low,
                'seconds_high': seconds.high,
                'rounds': seconds.count,
                'compile_seconds': gradient.compile_seconds,
                'temp_mb': gradient.temp_bytes / 1e6,
                'needed_gflop': needed / 1e9,
                'gflop_per_second': needed / 1e9 / seconds.median,
                'commit': machine.commit(),
            }
        )
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Measures the axes asked for; rows of others in the file stay."""
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.growth', description='How a step grows.'
    )
    add = parser.add_argument
    add('--axes', nargs='*', default=list(AXES), choices=list(AXES))
    add('--shape', default=DEFAULT_SHAPE, choices=sorted(task.SHAPES))
    add('--rounds', type=int, default=5)
    add('--out', type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    print(machine.machine())
    rows = []
    for name in args.axes:
        found = axis(name, AXES[name], BASE, args.shape, args.rounds)
        print(records.show(found), flush=True)
        rows += found
    kept = records.merged(args.out, rows, ('shape', 'axis'), {'shape': DEFAULT_SHAPE})
    records.write_csv(args.out, kept)


if __name__ == '__main__':
    main()
