"""Rewards responses: python -m epa_jax.reward REWARD_MODEL responses.jsonl --out FILE."""

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from epa_jax import sharding
from epa_jax.commands import show_errors
from epa_jax.data.layouts import RecordError, prompt_of
from epa_jax.data.sources import DataError, records
from epa_jax.evals.bootstrap import mean_interval
from epa_jax.evals.rewards import Reward, open_reward_model
from epa_jax.evals.scoring import ROWS
from epa_jax.schema import MeshConfig
from epa_jax.storage import argument as local_path
from epa_jax.types import Message, as_messages


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog='python -m epa_jax.reward',
        description='Scores responses that epa_jax.sample wrote with a reward model.',
    )
    add = parser.add_argument
    add('model', type=local_path, help='a LLaMA or Mistral for sequence classification')
    add('responses', help='JSONL of prompt and responses')
    add('--tokenizer', type=local_path, help='a folder, if not beside the weights')
    add('--dtype', default='float32', choices=('float32', 'bfloat16'), help='of products')
    add('--rows', type=int, default=ROWS, help='rows a device computes together')
    add('--seed', type=int, default=0, help='of the bootstrap')
    add('--out', type=local_path, help='JSONL file: the records with their rewards')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Prints the mean reward and writes every one."""
    args = arguments(argv)
    rows = read(args.responses)
    model = open_reward_model(
        args.model,
        sharding.make_mesh(MeshConfig()),
        dtype=args.dtype,
        tokenizer=args.tokenizer,
        rows=args.rows,
    )
    rewarded = add_rewards(rows, model)
    if jax.process_index() == 0:
        means = np.array([np.mean(row['rewards']) for row in rewarded])
        count = sum(len(row['rewards']) for row in rewarded)
        print(f'{len(rows)} prompts, {count} responses')
        print(f'mean reward {mean_interval(means, args.seed)}')
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            lines = (json.dumps(row, ensure_ascii=False) for row in rewarded)
            args.out.write_text('\n'.join(lines) + '\n', 'utf-8')


def read(source: str) -> list[dict[str, Any]]:
    """Records of a prompt and one response or more.

    Raises:
      DataError: a source that cannot be opened, or a record that is none.
    """
    out = []
    for origin, record in records(source):
        try:
            if not isinstance(record, Mapping):
                raise RecordError(f'expected an object, found {type(record).__name__}')
            prompt_of(record.get('prompt'))
            texts = record.get('responses')
            if not isinstance(texts, list) or not texts:
                raise RecordError('responses: expected a list of texts')
            if not all(isinstance(text, str) for text in texts):
                raise RecordError('responses: expected a list of texts')
        except RecordError as error:
            raise DataError(f'{origin}: {error}; epa_jax.sample writes them') from None
        out.append(dict(record))
    if not out:
        raise DataError(f'{source}: no responses')
    return out


def add_rewards(rows: Sequence[Mapping[str, Any]], reward: Reward) -> list[dict[str, Any]]:
    """The records with `rewards`, one for each response.

    Args:
      rows: from `read`.
      reward: a reward model, or any function of conversations.
    """
    conversations = [
        (*as_messages(prompt_of(row['prompt'])), Message('assistant', text))
        for row in rows
        for text in row['responses']
    ]
    found = reward(conversations)
    out, start = [], 0
    for row in rows:
        end = start + len(row['responses'])
        out.append({**row, 'rewards': [float(x) for x in found[start:end]]})
        start = end
    return out


def run_main() -> None:
    """Shows bad input as one message."""
    show_errors(main)


if __name__ == '__main__':
    run_main()
