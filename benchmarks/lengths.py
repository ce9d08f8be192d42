"""Writes benchmarks/lengths_hh.csv: python -m benchmarks.lengths --model=FOLDER.

Tokens of prompt, chosen and rejected response of HH-RLHF pairs in the order of a run, so
that real lengths are at hand where neither the data nor the tokenizer is.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import records, synthetic, task, workload

COUNT = 512


def rows(steps: Sequence[Sequence[task.Group]]) -> list[dict[str, int]]:
    """A line for each pair."""
    return [
        {
            'prompt': len(group.prompt),
            'chosen': len(group.responses[0]),
            'rejected': len(group.responses[1]),
        }
        for groups in steps
        for group in groups
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.lengths', description='Lengths of HH-RLHF pairs.'
    )
    parser.add_argument('--model', required=True, help='folder with the tokenizer')
    parser.add_argument('--out', type=Path, default=synthetic.LENGTHS)
    args = parser.parse_args(argv)
    setting = workload.Setting(args.model, prompts=1, steps=COUNT)
    with tempfile.TemporaryDirectory() as folder:
        data = workload.pipeline(workload.run_config(setting, Path(folder)))
    steps = workload.groups_of_steps(data, COUNT)
    records.write_csv(args.out, rows([workload.as_lists(groups) for groups in steps]))


if __name__ == '__main__':
    main()
