"""What is trained: which responses of a prompt, on what data, with which model.

Standard library only: contestants import it in environments of their own.
"""

import argparse
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# Layers, widths and vocabulary of models whose weights are drawn at random.
SHAPES: Mapping[str, Mapping[str, Any]] = {
    'tiny': {
        'vocab_size': 64, 'd_model': 16, 'd_ff': 32, 'n_layers': 2, 'n_heads': 4,
        'n_kv_heads': 2, 'tie_embeddings': True, 'max_positions': 2048,
    },
    'small': {
        'vocab_size': 8192, 'd_model': 128, 'd_ff': 384, 'n_layers': 4, 'n_heads': 4,
        'n_kv_heads': 2, 'tie_embeddings': True, 'max_positions': 8192,
    },
    '135M': {  # SmolLM2-135M
        'vocab_size': 49152, 'd_model': 576, 'd_ff': 1536, 'n_layers': 30, 'n_heads': 9,
        'n_kv_heads': 3, 'tie_embeddings': True, 'max_positions': 8192,
    },
    '1B': {  # Llama-3.2-1B
        'vocab_size': 128256, 'd_model': 2048, 'd_ff': 8192, 'n_layers': 16, 'n_heads': 32,
        'n_kv_heads': 8, 'tie_embeddings': True, 'max_positions': 8192,
    },
    '7B': {  # Mistral-7B
        'vocab_size': 32000, 'd_model': 4096, 'd_ff': 14336, 'n_layers': 32, 'n_heads': 32,
        'n_kv_heads': 8, 'tie_embeddings': False, 'max_positions': 8192,
    },
}  # fmt: skip
DTYPES = ('float32', 'bfloat16')


class TaskError(ValueError):
    """A task that cannot be run; the message says what was expected."""


class Ratio(NamedTuple):
    """Chosen, strong and weak responses of a prompt."""

    strong: int
    weak: int

    @property
    def loss(self) -> str:
        """'dpo' for one pair, else 'epa'."""
        return 'dpo' if self == (1, 0) else 'epa'


def ratio(text: str) -> Ratio:
    """Reads '1:1' (a pair) or '1:3:4' (one chosen, three strong, four weak).

    Raises:
      TaskError: anything else.
    """
    parts = text.split(':')
    if len(parts) not in (2, 3) or parts[0] != '1' or not all(p.isdigit() for p in parts):
        raise TaskError(f'{text!r}: expected 1:STRONG or 1:STRONG:WEAK, such as 1:1:2')
    numbers = [int(p) for p in parts[1:]]
    return Ratio(numbers[0], numbers[1] if len(numbers) == 2 else 0)


@dataclasses.dataclass(frozen=True)
class Group:
    """A prompt with its responses, as tokens; the chosen response is the first."""

    prompt: list[int]
    responses: list[list[int]]


def write_steps(path: Path, steps: Iterable[Sequence[Group]]) -> None:
    """Writes the prompts of every step, a line each."""
    with path.open('w', encoding='utf-8') as file:
        for groups in steps:
            record = [dataclasses.asdict(group) for group in groups]
            print(json.dumps(record), file=file)


def read_steps(path: Path) -> list[list[Group]]:
    """What `write_steps` wrote.

    Raises:
      TaskError: no such file, or an empty one.
    """
    if not path.is_file():
        raise TaskError(
            f'{path}: no such file; make it with python -m benchmarks.workload --out={path}'
        )
    lines = path.read_text('utf-8').splitlines()
    if not lines:
        raise TaskError(
            f'{path}: no steps; make it anew with python -m benchmarks.workload'
        )
    return [[Group(**group) for group in json.loads(line)] for line in lines]


def pairs(step: Sequence[Group]) -> list[dict[str, list[int]]]:
    """A step as prompt, chosen and rejected tokens.

    Raises:
      TaskError: a prompt with more or fewer than two responses.
    """
    if any(len(group.responses) != 2 for group in step):
        raise TaskError('this trainer knows pairs alone; give it steps of ratio 1:1')
    return [
        {
            'prompt_ids': group.prompt,
            'chosen_ids': group.responses[0],
            'rejected_ids': group.responses[1],
        }
        for group in step
    ]


def add_contestant_arguments(parser: argparse.ArgumentParser) -> None:
    """What every other trainer is told."""
    add = parser.add_argument
    add('--steps-file', type=Path, required=True, help='from benchmarks.workload')
    add('--model', type=Path, help='Hugging Face folder; not with --shape')
    add('--shape', choices=sorted(SHAPES), help='random weights of this shape')
    add('--steps', type=int, default=4, help='steps, the first of which compiles')
    add('--dtype', choices=DTYPES, default='float32', help='of matrix products')
    add('--out', type=Path, help='file of lines; standard output without it')
