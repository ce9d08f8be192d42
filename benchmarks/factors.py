"""What each saving is worth: python -m benchmarks.factors --help.

The same responses of the same prompts, their log-probs and the gradient of a weighted sum
of them (which costs what any loss on them costs), with one saving after another taken away:

  ours             prompt shared, rows packed, reference cached, head at responses
  prompt repeated  every response with a prompt of its own; still packed
  padded           every response in a row, as long as the longest of the step
  reference        and its forward pass in the step
  whole head       and the vocabulary met at the prompt's tokens too

The first four stages give one gradient (tests/benchmarks/factors_test.py); the last also
scores the prompt. What then remains to another trainer is the framework:
benchmarks/results/step.csv.
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import flops, machine, records, synthetic, workload
from epa_jax.data import packing
from epa_jax.prepare import Job
from epa_jax.train_step import Objective
from epa_jax.types import PackedBatch, Params, Role, TokenGroup

RESULTS = machine.REPO / 'benchmarks' / 'results' / 'factors.csv'


@dataclasses.dataclass(frozen=True)
class Stage:
    """Rows of one stage.

    Attributes:
      name: what was taken away last.
      batches: micro-batches.
      slopes: float32 [N, K] for each of them: the weight of each log-prob.
      reference: whether the reference's forward pass is part of it.
    """

    name: str
    batches: list[PackedBatch]
    slopes: list[np.ndarray]
    reference: bool = False

    @property
    def cells(self) -> int:
        """Tokens computed, padding included."""
        return sum(batch.tokens.size for batch in self.batches)


def alone(groups: Sequence[TokenGroup]) -> list[TokenGroup]:
    """Every response as a group of its own, keyed in the order of the table."""
    width = max(len(group.response_ids) for group in groups)
    return [
        TokenGroup(
            key=i * width + k,
            prompt_ids=group.prompt_ids,
            response_ids=(response,),
            roles=np.array([Role.CHOSEN], np.int8),
            ratings=group.ratings[k : k + 1],
        )
        for i, group in enumerate(groups)
        for k, response in enumerate(group.response_ids)
    ]


def scored_everywhere(group: TokenGroup) -> TokenGroup:
    """The tokens of a group of one response, all but the first of them scored."""
    tokens = np.concatenate([group.prompt_ids, group.response_ids[0]])
    return dataclasses.replace(group, prompt_ids=tokens[:1], response_ids=(tokens[1:],))


def in_rows(groups: Sequence[TokenGroup]) -> list[PackedBatch]:
    """One micro-batch of a row for each group, padded to the longest."""
    longest = max(group.num_tokens for group in groups)
    return packing.pack(groups, packing.Layout(len(groups), longest, 1, 1))


def stages(groups: Sequence[TokenGroup], slopes_NK: np.ndarray) -> list[Stage]:
    """The stages, from all savings to none.

    Args:
      groups: prompts of a step.
      slopes_NK: float32, the weight of each response's log-prob.
    """
    groups = [dataclasses.replace(group, key=i) for i, group in enumerate(groups)]
    single, flat = alone(groups), slopes_NK.reshape(-1, 1)
    everywhere = [scored_everywhere(group) for group in single]

    def stage(
        name: str, batches: list[PackedBatch], slopes: np.ndarray, reference: bool = False
    ) -> Stage:
        return Stage(name, batches, [weights(b, slopes) for b in batches], reference)

    whole, packed = synthetic.layout(groups), synthetic.layout(single)
    packed = dataclasses.replace(packed, row_length=whole.row_length)
    return [
        stage('ours', packing.pack(groups, whole), slopes_NK),
        stage('prompt repeated', packing.pack(single, packed), flat),
        stage('padded', in_rows(single), flat),
        stage('reference', in_rows(single), flat, reference=True),
        stage('whole head', in_rows(everywhere), flat, reference=True),
    ]


def weights(batch: PackedBatch, slopes: np.ndarray) -> np.ndarray:
    """The rows of `slopes` that a micro-batch holds, by key; 0 in empty places."""
    keys = np.asarray(batch.keys).reshape(-1)
    return np.where(keys[:, None] >= 0, slopes[keys], 0).astype(np.float32)


def gradient(goal: Objective) -> Callable[[Params, PackedBatch, np.ndarray], Params]:
    """The gradient of sum(slopes * log-probs), compiled."""

    def total(params: Params, batch: PackedBatch, slopes: jax.Array) -> jax.Array:
        return jnp.vdot(slopes, goal.policy_table(params, batch).logps)

    return jax.jit(jax.grad(total))


def runner(job: Job, goal: Objective, stage: Stage) -> Callable[[], None]:
    """A function that computes a stage once."""
    params, place = job.weights.trained, job.programs.place
    placed = [place(batch) for batch in stage.batches]
    grad, table = gradient(goal), jax.jit(goal.policy_table)

    def run() -> None:
        found: list[Any] = []
        for batch, slopes in zip(placed, stage.slopes, strict=True):
            if stage.reference:
                found.append(table(params, batch))
            found.append(grad(params, batch, slopes))
        jax.block_until_ready(found)

    return run


def measured(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each stage."""
    setting = workload.setting_of(args)
    with tempfile.TemporaryDirectory() as folder:
        run = workload.run_config(setting, Path(folder), reference__mode='in_step')
        job = workload.make_job(run)
    goal = workload.objective(job)
    groups = workload.groups_of_steps(job.batches.train.preference, 1)[0]
    width = max(len(group.response_ids) for group in groups)
    slopes = np.tile(np.linspace(-1, 1, width, dtype=np.float32), (len(groups), 1))
    made = stages(groups, slopes)
    runs = {stage.name: runner(job, goal, stage) for stage in made}
    taken = synthetic.interleaved(runs, args.rounds)
    lists = workload.as_lists(groups)
    rows: list[dict[str, Any]] = []
    for stage in made:
        seconds = records.spread(taken[stage.name])
        before = rows[-1]['seconds'] if rows else seconds.median
        rows.append(
            {
                'case': args.name,
                'ratio': args.ratio,
                'prompts': args.prompts,
                'dtype': args.dtype,
                'stage': stage.name,
                'seconds': seconds.median,
                'seconds_low': seconds.low,
                'seconds_high': seconds.high,
                'rounds': seconds.count,
                'factor': seconds.median / before,
                'cells_per_prompt': stage.cells / len(groups),
                'tokens_per_prompt': flops.shared(lists).tokens / len(groups),
                'repeated_per_prompt': flops.repeated(lists).tokens / len(groups),
                'commit': machine.commit(),
            }
        )
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Measures one case; rows of others in the file stay."""
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.factors', description='What each saving is worth.'
    )
    workload.add_arguments(parser)
    add = parser.add_argument
    add('--name', required=True, help='of the case, in the table')
    add('--rounds', type=int, default=5)
    add('--out', type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    print(machine.machine())
    rows = measured(args)
    print(records.show(rows))
    kept = records.merged(args.out, rows, ('case', 'ratio', 'prompts', 'dtype'))
    records.write_csv(args.out, kept)


if __name__ == '__main__':
    main()
