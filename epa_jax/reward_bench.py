"""Which response is rewarded more: python -m epa_jax.reward_bench MODEL --data FILE."""

import argparse
import collections
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from epa_jax import sharding
from epa_jax.commands import evals_file, show_errors
from epa_jax.config import ConfigError
from epa_jax.data.examples import read_examples
from epa_jax.data.sources import DataError, records
from epa_jax.evals.pair_accuracy import (
    SECTIONS,
    Accuracy,
    by_section,
    by_subset,
    score,
)
from epa_jax.evals.rewards import open_reward_model
from epa_jax.evals.scoring import ScoreError
from epa_jax.formats.reward_model import is_reward_model
from epa_jax.implicit import add_implicit_arguments, implicit_rewards
from epa_jax.schema import MeshConfig
from epa_jax.storage import argument as local_path
from epa_jax.types import Message, Role, as_messages

NO_SUBSET = '(no subset)'
# arguments that say how a policy's log-probs become rewards
IMPLICIT = (
    'step',
    'reference',
    'beta',
    'tokens',
    'max_prompt_tokens',
    'max_response_tokens',
    'chat_template',
    'system_prompt',
)


class Pair(NamedTuple):
    """Two responses to a prompt.

    Attributes:
      origin: where they were read.
      chosen: reward of the better one.
      rejected: reward of the other.
    """

    origin: str
    chosen: float
    rejected: float


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog='python -m epa_jax.reward_bench',
        description='Accuracy on pairs by subset and section, as RewardBench has it. The '
        'model is a reward model, or a policy whose implicit reward is taken.',
    )
    add_implicit_arguments(parser)
    add = parser.add_argument
    add('--out', type=local_path, help='JSON file; of a run, in its evals/')
    add('--details', type=local_path, help='JSONL file with both rewards of each pair')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Prints the accuracy of each subset and section, and their score."""
    args = arguments(argv)
    subsets = subsets_of(args.data)
    explicit = is_reward_model(args.model)
    pairs, about = (_rewarded if explicit else _implicit)(args)
    named = [subsets[pair.origin] for pair in pairs]
    margins = np.array([pair.chosen - pair.rejected for pair in pairs])
    if np.isnan(margins).any():
        first = pairs[int(np.argmax(np.isnan(margins)))]
        raise ScoreError(
            f'{first.origin}: the rewards are {first.chosen} and {first.rejected}, whose '
            'difference is no number; the weights are not finite'
        )
    found = by_subset(margins, named)
    if jax.process_index() == 0:
        show(found, about)
        _write(args, found, {'reward': 'model' if explicit else 'implicit', **about})
        _write_details(args.details, pairs, named)


def subsets_of(source: str) -> dict[str, str]:
    """The subset of each record, by where it stands.

    Raises:
      DataError: a source that cannot be opened, or a subset that is no text.
    """
    out = {}
    for origin, record in records(source):
        name = record.get('subset') if isinstance(record, Mapping) else None
        if name is not None and not isinstance(name, str):
            raise DataError(f'{origin}: subset: expected text, found {name!r}')
        out[origin] = name or NO_SUBSET
    return out


def _rewarded(args: argparse.Namespace) -> tuple[list[Pair], dict[str, Any]]:
    """Pairs with the rewards of a reward model."""
    given = [name for name in IMPLICIT if getattr(args, name) is not None]
    if given:
        raise ConfigError(
            f'--{given[0]}: is of implicit rewards, and {args.model} is a reward model; '
            'leave it out'
        )
    bad_lines = args.bad_lines or 'error'
    examples, read = read_examples(
        args.data, layout=args.layout, bad_lines=bad_lines, limit=args.limit
    )
    model = open_reward_model(
        args.model,
        sharding.make_mesh(MeshConfig(args.mesh_data, args.mesh_fsdp, args.mesh_tensor)),
        dtype=args.dtype,
        tokenizer=args.tokenizer,
        rows=args.rows,
    )
    texts = [
        [
            (*as_messages(example.prompt), Message('assistant', text))
            for text in example.responses
        ]
        for example in examples
    ]
    # each once, so that equal texts tie: their rewards could differ in rounding
    distinct = list(dict.fromkeys(text for pair in texts for text in pair))
    known = dict(zip(distinct, model(distinct), strict=True))
    pairs = [
        _pair(example.origin, example.roles, np.array([known[text] for text in pair]))
        for example, pair in zip(examples, texts, strict=True)
    ]
    return pairs, {'dropped': dict(collections.Counter(read.skipped)), 'cut': 0}


def _implicit(args: argparse.Namespace) -> tuple[list[Pair], dict[str, Any]]:
    """Pairs with the implicit rewards of a policy."""
    found = implicit_rewards(args, min_strong=0)
    pairs = [
        _pair(example.origin, example.roles, _tied(example.response_ids, row))
        for example, row in zip(found.examples, found.rewards, strict=True)
    ]
    about = dict(found.about)
    cut = about.pop('truncated_prompts') + about.pop('truncated_responses')
    return pairs, {**about, 'cut': cut}


def _tied(responses: Sequence[np.ndarray], rewards: np.ndarray) -> np.ndarray:
    """Rewards [K] in which equal responses tie, whatever rounding says."""
    texts = [ids.tobytes() for ids in responses]
    return np.array([rewards[texts.index(text)] for text in texts])


def _pair(origin: str, roles: Sequence[Role] | np.ndarray, rewards: np.ndarray) -> Pair:
    if sorted(roles) != sorted((Role.CHOSEN, Role.REJECTED)):
        raise DataError(
            f'{origin}: {len(rewards)} responses; expected one chosen and one rejected'
        )
    best = list(roles).index(Role.CHOSEN)
    return Pair(origin, float(rewards[best]), float(rewards[1 - best]))


def show(subsets: Mapping[str, Accuracy], about: Mapping[str, Any]) -> None:
    """Prints a table; a tie counts as wrong, as in RewardBench."""
    dropped = sum(about['dropped'].values())
    count = sum(found.pairs for found in subsets.values())
    print(f'{count} pairs; {about["cut"]} texts cut, {dropped} pairs dropped')
    sections = by_section(subsets)
    for title, table in (('subset', subsets), ('section', sections)):
        for name, found in table.items():
            print(f'{title:8} {name:24} {found}')
    whole = score(sections)
    if whole is not None:
        missing = [name for name in SECTIONS if name not in sections]
        note = f'; no pairs of {", ".join(missing)}' if missing else ''
        print(f'{"score":8} {"mean of sections" + note:24} {whole}')
    ties = sum(found.ties for found in subsets.values())
    if ties:
        print(f'ties count as wrong, as in RewardBench: {ties} pairs of equal rewards')


def _write(
    args: argparse.Namespace, subsets: Mapping[str, Accuracy], about: Mapping[str, Any]
) -> None:
    path = evals_file(args, 'reward_bench')
    if not path:
        return
    sections = by_section(subsets)
    whole = score(sections)
    out = {
        'model': str(args.model),
        'data': args.data,
        'step': args.step,
        'dtype': args.dtype,
        **about,
        'ties_are': 'wrong',
        'subsets': {name: _plain(found) for name, found in subsets.items()},
        'sections': {name: _plain(found) for name, found in sections.items()},
        'score': _plain(whole) if whole else None,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(out, indent=2) + '\n', 'utf-8')


def _plain(found: Accuracy) -> dict[str, Any]:
    out = dataclasses.asdict(found)
    return out | {'error': None if math.isnan(found.error) else found.error}


def _write_details(
    path: Path | None, pairs: Sequence[Pair], subsets: Sequence[str]
) -> None:
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open('w', encoding='utf-8') as file:
            for pair, subset in zip(pairs, subsets, strict=True):
                record = pair._asdict() | {'subset': subset}
                file.write(json.dumps(record, ensure_ascii=False) + '\n')


def run_main() -> None:
    """Shows bad input as one message."""
    show_errors(main)


if __name__ == '__main__':
    run_main()
