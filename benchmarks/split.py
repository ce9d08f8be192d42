"""Where a step's time goes: python -m benchmarks.split --help.

Data (drawing, packing and placing), the layers forward and backward, the head (gathering,
vocabulary, softmax; both directions) and the optimiser. Parts that one program holds are
told apart by differences of programs with and without them, measured in rounds.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import machine, records, synthetic, workload
from epa_jax import train_step
from epa_jax.logprobs import packed_states
from epa_jax.prepare import Job
from epa_jax.train_step import Objective
from epa_jax.types import PackedBatch, Params, TokenGroup

RESULTS = machine.REPO / 'benchmarks' / 'results' / 'split.csv'


def programs(
    job: Job, goal: Objective, groups: Sequence[TokenGroup]
) -> dict[str, Callable[[], None]]:
    """Functions to time, each of them over all micro-batches of one step."""
    data, params = job.batches.train.preference, job.weights.trained
    place = job.programs.place
    batches = [place(batch) for batch in data.pack(groups)]

    def hidden(params: Params, batch: PackedBatch) -> jax.Array:
        return packed_states(params, batch, spec=job.spec, compute=goal.compute)

    def pulled(params: Params, batch: PackedBatch) -> jax.Array:
        states = hidden(params, batch)
        return jnp.sum(states * jnp.sin(jnp.arange(states.size).reshape(states.shape)))

    forward, backward = jax.jit(hidden), jax.jit(jax.grad(pulled))
    table = jax.jit(goal.policy_table)
    gradients = jax.jit(goal.gradients)

    def over(function: Callable[[Params, PackedBatch], Any]) -> Callable[[], None]:
        def run() -> None:
            jax.block_until_ready([function(params, batch) for batch in batches])

        return run

    visits = [(group.key // len(data.examples), group.key % len(data.examples))
              for group in groups]  # fmt: skip

    def make_data() -> None:
        made = data.pack([data.group(visit) for visit in visits])
        jax.block_until_ready([place(batch) for batch in made])

    return {
        'data': make_data,
        'layers forward': over(forward),
        'layers': over(backward),
        'forward': over(table),
        'gradients': over(gradients),
        'optimizer': _updates(job, gradients(params, batches[0])),
    }


def _updates(job: Job, total: train_step.Accumulator) -> Callable[[], None]:
    """One update after another, each on the state that the one before left."""
    held = [job.initial_state()]

    def run() -> None:
        state, metrics = job.programs.update(held[0], total, job.loss.nothing_carried())
        held[0] = jax.block_until_ready(state)
        jax.block_until_ready(metrics)

    return run


def parts(median: dict[str, float]) -> dict[str, float]:
    """Seconds of each part of a step, from the medians of `programs`."""
    head = median['gradients'] - median['layers']
    head_forward = median['forward'] - median['layers forward']
    return {
        'data': median['data'],
        'layers forward': median['layers forward'],
        'layers backward': median['layers'] - median['layers forward'],
        'head forward': head_forward,
        'head backward': head - head_forward,
        'optimizer': median['optimizer'],
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measures one setting; rows of others in the file stay."""
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.split', description="Where a step's time goes."
    )
    workload.add_arguments(parser)
    add = parser.add_argument
    add('--name', required=True, help='of the model, in the table')
    add('--rounds', type=int, default=5)
    add('--out', type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    print(machine.machine())
    rows = measured(args)
    print(records.show(rows))
    setting = ('model', 'data', 'ratio', 'prompts', 'dtype')
    kept = records.merged(args.out, rows, setting)
    records.write_csv(args.out, kept)


def measured(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each part."""
    setting = workload.setting_of(args)
    with tempfile.TemporaryDirectory() as folder:
        run = workload.run_config(setting, Path(folder))
        job = workload.make_job(run)
        groups = workload.groups_of_steps(job.batches.train.preference, 1)[0]
        functions = programs(job, workload.objective(job), groups)
        taken = synthetic.interleaved(functions, args.rounds)
    spreads = {name: records.spread(seconds) for name, seconds in taken.items()}
    found = parts({name: spread.median for name, spread in spreads.items()})
    whole = sum(found.values())
    return [
        {
            'model': args.name,
            'data': args.data,
            'ratio': args.ratio,
            'prompts': args.prompts,
            'dtype': args.dtype,
            'part': part,
            'seconds': seconds,
            'share': seconds / whole,
            'rounds': args.rounds,
            'gradients_low': spreads['gradients'].low,
            'gradients_high': spreads['gradients'].high,
            'commit': machine.commit(),
        }
        for part, seconds in found.items()
    ]


if __name__ == '__main__':
    main()
