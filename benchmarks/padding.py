"""How much of what a step computes is padding: python -m benchmarks.padding --help.

Rows as long as the longest prompt with its responses needs, against one, two and three
lengths chosen for a run (`epa_jax.data.row_lengths`). Lengths are chosen by a sample of
the steps of one epoch; padding, empty rows included, is counted over all of them. Nothing
is timed.
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine, records, workload
from epa_jax.data import packing, row_lengths
from epa_jax.data.packing import Layout

RESULTS = Path(__file__).parent / 'results' / 'padding.csv'
MOST = 3  # lengths


def padding(steps: Sequence[Sequence[int]], layouts: Sequence[Layout]) -> float:
    """Share of the cells that hold no token.

    Args:
      steps: tokens of every prompt with its responses.
      layouts: to choose from for each step.
    """
    computed = sum(packing.cells(step, packing.cheapest(step, layouts)) for step in steps)
    return 1 - sum(map(sum, steps)) / computed


def measured(
    steps: Sequence[Sequence[int]], rows: int
) -> list[tuple[str, list[int], float]]:
    """For each way to choose: its name, the row lengths, the padding.

    Args:
      steps: tokens of every prompt with its responses, of all steps of a run.
      rows: of a micro-batch.
    """
    longest = max(map(max, steps))
    sampled = [steps[i] for i in row_lengths.sampled(len(steps), len(steps[0]))]

    def layout(length: int) -> Layout:
        return Layout(rows, length, len(steps[0]), 1)

    found = {'longest': [packing.automatic_row_length(longest)]} | {
        str(most): row_lengths.choose(sampled, longest, layout, len(steps), most)
        for most in range(1, MOST + 1)
    }
    return [
        (way, lengths, padding(steps, [layout(length) for length in lengths]))
        for way, lengths in found.items()
    ]


def sizes(setting: workload.Setting) -> list[int]:
    """Tokens of every prompt with its responses, in the order of an epoch."""
    with tempfile.TemporaryDirectory() as folder:
        data = workload.pipeline(workload.run_config(setting, Path(folder)))
    order = data.visits.dataset()
    return [data.group(order[i]).num_tokens for i in range(data.visits.size)]


def main(argv: Sequence[str] | None = None) -> None:
    """Counts one setting; rows of others in the file stay."""
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.padding', description='Share of cells without a token.'
    )
    workload.add_arguments(parser)
    add = parser.add_argument
    add('--name', required=True, help='of the model, in the table')
    add('--of', type=int, nargs='*', default=[4, 16, 64], help='prompts of a step')
    add('--rows', type=int, nargs='*', default=[1, 2, 4, 16], help='of a micro-batch')
    add('--out', type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    found = table(args)
    print(records.show(found))
    setting = ('model', 'data', 'ratio', 'prompts', 'rows', 'lengths')
    records.write_csv(args.out, records.merged(args.out, found, setting))


def table(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A line for each number of prompts and rows, and each way to choose."""
    tokens = sizes(dataclasses.replace(workload.setting_of(args), prompts=1))
    out = []
    for prompts in args.of:
        starts = range(0, len(tokens) - prompts + 1, prompts)
        steps = [tokens[start : start + prompts] for start in starts]
        for rows in args.rows:
            for way, lengths, share in measured(steps, rows):
                out.append(
                    {
                        'model': args.name,
                        'data': args.data,
                        'ratio': args.ratio,
                        'prompts': prompts,
                        'rows': rows,
                        'lengths': way,
                        'row_lengths': ' '.join(map(str, lengths)),
                        'padding': share,
                        'steps': len(steps),
                        'commit': machine.commit(),
                    }
                )
    return out


if __name__ == '__main__':
    main()
