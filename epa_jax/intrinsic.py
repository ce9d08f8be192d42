"""Rates a policy's implicit reward: python -m epa_jax.intrinsic RUN --data rated.jsonl."""

import argparse
import csv
import dataclasses
import json
from typing import Any

import jax
import numpy as np

from epa_jax.commands import evals_file, show_errors
from epa_jax.config import ConfigError
from epa_jax.evals.intrinsic import Rated, intrinsic
from epa_jax.implicit import add_implicit_arguments, implicit_rewards
from epa_jax.storage import argument as local_path
from epa_jax.types import Role, TokenExample

RATINGS = ('as_is', 'logit')


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog='python -m epa_jax.intrinsic',
        description='The implicit reward against ratings of responses. What is not given '
        "is as in the run's configuration.",
    )
    add_implicit_arguments(parser)
    add = parser.add_argument
    add('--ratings', default='as_is', choices=RATINGS, help='logit: of probabilities')
    add('--seed', type=int, default=0, help='of the bootstrap')
    add('--out', type=local_path, help='JSON file; of a run, in its evals/')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Prints every metric with its interval."""
    args = arguments(argv)
    rewarded = implicit_rewards(args)
    rated, has_ratings = beside_ratings(rewarded.examples, rewarded.rewards)
    if args.ratings == 'logit':
        rated = dataclasses.replace(rated, r_true=_logit(rated.r_true, rated.mask))
    found = intrinsic(rated, args.seed)
    if not has_ratings:  # chosen or rejected is an order, not a distance
        found = {k: v for k, v in found.items() if not k.startswith('slope1')}
    if jax.process_index() == 0:
        _show(args, found, rewarded.about)
        _save_points(args, rated if has_ratings else None)


def beside_ratings(examples: list[TokenExample], r_theta: np.ndarray) -> tuple[Rated, bool]:
    """Rewards beside ratings, and whether the data have any.

    Without, the chosen response is rated 1 and the others 0.
    """
    r_true = np.full(r_theta.shape, np.nan)
    lengths = np.zeros(r_theta.shape, int)
    known = not any(np.isnan(example.ratings).any() for example in examples)
    for n, example in enumerate(examples):
        count = len(example.response_ids)
        r_true[n, :count] = example.ratings if known else example.roles == Role.CHOSEN
        lengths[n, :count] = [len(ids) for ids in example.response_ids]
    return Rated(r_theta, r_true, lengths, lengths > 0), known


def _logit(probabilities: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Log-odds; 0 and 1 become those of one in a thousand."""
    known = probabilities[mask]
    if known.min() < 0 or known.max() > 1:
        raise ConfigError(
            f'ratings=logit: ratings are {known.min():g} to {known.max():g}, expected '
            'probabilities'
        )
    p = np.clip(probabilities, 1e-3, 1 - 1e-3)
    return np.log(p) - np.log1p(-p)


def _show(args: argparse.Namespace, found: dict[str, Any], about: dict[str, Any]) -> None:
    cut = about['truncated_prompts'] + about['truncated_responses']
    print(
        f'{about["prompts"]} prompts with {about["responses"]} responses; {cut} texts cut, '
        f'{sum(about["dropped"].values())} examples and '
        f'{sum(about["dropped_responses"].values())} responses dropped'
    )
    for name, interval in found.items():
        print(f'{name:26} {interval}')
    path = evals_file(args, 'intrinsic')
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        metrics = {
            name: [None if np.isnan(x) else x for x in interval]
            for name, interval in found.items()
        }
        out = {'model': str(args.model), 'data': args.data, **about, 'metrics': metrics}
        path.write_text(json.dumps(out, indent=2) + '\n', 'utf-8')


def _save_points(args: argparse.Namespace, rated: Rated | None) -> None:
    """Every rating with its r_theta beside the metrics, for `compare` to draw."""
    path = evals_file(args, 'intrinsic')
    if not path or rated is None:
        return
    columns = ('prompt', 'response', 'rating', 'r_theta', 'length')
    places = np.argwhere(rated.mask).T
    values = [x[tuple(places)] for x in (rated.r_true, rated.r_theta, rated.lengths)]
    with path.with_name(f'{path.stem}_points.csv').open('w', encoding='utf-8') as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow(columns)
        for prompt, response, rating, reward, length in zip(*places, *values, strict=True):
            writer.writerow([prompt, response, f'{rating:.6g}', f'{reward:.6g}', length])


def run_main() -> None:
    """Shows bad input as one message."""
    show_errors(main)


if __name__ == '__main__':
    run_main()
