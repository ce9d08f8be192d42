"""Rates a policy's implicit reward: python -m epa_jax.intrinsic RUN --data rated.jsonl."""

import argparse
import dataclasses
import json
import logging
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from epa_jax.checkpoints import CheckpointError
from epa_jax.config import ConfigError
from epa_jax.data.load import load_datasets
from epa_jax.data.sources import DataError
from epa_jax.evals.intrinsic import Rated, intrinsic
from epa_jax.evals.scoring import ROWS, score
from epa_jax.formats.names import FormatError
from epa_jax.models.hf_config import SpecError
from epa_jax.policy import (
    Policy,
    add_model_arguments,
    evals_file,
    load_policy,
    policy_of,
)
from epa_jax.schema import DataConfig
from epa_jax.types import TokenExample

USER_ERRORS = (CheckpointError, ConfigError, DataError, FormatError, SpecError)
RATINGS = ('as_is', 'logit')


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog='python -m epa_jax.intrinsic',
        description='r_theta = beta log(policy / reference) against ratings of responses.',
    )
    add_model_arguments(parser)
    add = parser.add_argument
    add('--data', required=True, help='rated responses, or pairs')
    add('--reference', type=Path, help="a model; that of the run's configuration")
    add('--beta', type=float, help="scale of r_theta; the run's loss.beta")
    add('--layout', default='auto', help='of the data, see epa_jax.data.layouts')
    add('--ratings', default='as_is', choices=RATINGS, help='logit: of probabilities')
    add('--limit', type=int, default=0, help='prompts at most; 0: all')
    add('--max_prompt_tokens', type=int, default=512, help='longer ones are cut')
    add('--max_response_tokens', type=int, default=512, help='longer ones are cut')
    add('--rows', type=int, default=ROWS, help='rows a device computes together')
    add('--seed', type=int, default=0, help='of the bootstrap')
    add('--out', type=Path, help='JSON file; of a run, in its evals/')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Prints every metric with its interval."""
    args = arguments(argv)
    config = _run_config(args.model)
    reference = args.reference or _reference(config, args.model)
    beta = _beta(args.beta, config, args.model)
    policy = policy_of(args)
    examples, counts = read(args, policy)
    logps = score_examples(policy, examples, args.rows)
    ref = load_policy(
        reference, mesh=policy.mesh, dtype=args.dtype, tokenizer=args.tokenizer
    )
    if ref.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise ConfigError(f'{reference}: its tokenizer is not that of {args.model}')
    rated = rewards(examples, beta * (logps - score_examples(ref, examples, args.rows)))
    if args.ratings == 'logit':
        rated = dataclasses.replace(rated, r_true=_logit(rated.r_true, rated.mask))
    found = intrinsic(rated, args.seed)
    if jax.process_index() == 0:
        _show(args, found, counts | {'beta': beta, 'reference': str(reference)})


def read(
    args: argparse.Namespace, policy: Policy
) -> tuple[list[TokenExample], dict[str, Any]]:
    """Examples with all their responses, and what became of the data."""
    cfg = DataConfig(
        train=args.data,
        layout=args.layout,
        max_examples=args.limit,
        max_prompt_tokens=args.max_prompt_tokens,
        max_response_tokens=args.max_response_tokens,
    )
    loaded = load_datasets(cfg, policy.tokenizer, min_strong=1)
    report = loaded.tokenised
    counts = {
        'prompts': len(loaded.train),
        'responses': sum(len(example.response_ids) for example in loaded.train),
        'dropped': dict(report.dropped),
        'truncated_prompts': report.truncated_prompts,
        'truncated_responses': report.truncated_responses,
    }
    return loaded.train, counts


def score_examples(policy: Policy, examples: list[TokenExample], rows: int) -> np.ndarray:
    """Log-probs of all responses, float32 [N, K]; NaN where a prompt has fewer."""
    return score(
        policy.params,
        policy.spec,
        policy.compute,
        [example.prompt_ids for example in examples],
        [example.response_ids for example in examples],
        mesh=policy.mesh,
        rows=rows,
    ).logps


def rewards(examples: list[TokenExample], r_theta_NK: np.ndarray) -> Rated:
    """Rewards beside ratings; of pairs the chosen response is rated 1, the other 0."""
    r_true = np.full(r_theta_NK.shape, np.nan)
    lengths = np.zeros(r_theta_NK.shape, int)
    for n, example in enumerate(examples):
        count = len(example.response_ids)
        known = not np.isnan(example.ratings).any()
        r_true[n, :count] = example.ratings if known else example.roles == 1
        lengths[n, :count] = [len(ids) for ids in example.response_ids]
    return Rated(r_theta_NK, r_true, lengths, lengths > 0)


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


def _run_config(folder: Path) -> dict[str, Any]:
    """The configuration of a run folder; empty for other models."""
    if not (folder / 'checkpoints').is_dir():
        return {}
    return dict(json.loads((folder / 'config.json').read_text('utf-8')))


def _reference(config: dict[str, Any], model: Path) -> Path:
    found = config.get('reference.path') or config.get('model.path')
    if not found:
        raise ConfigError(f'--reference: {model} is no run folder; name its reference')
    return Path(found)


def _beta(given: float | None, config: dict[str, Any], model: Path) -> float:
    """As given, as configured, or the default of the run's loss."""
    found = config.get('loss.beta') if given is None else given
    if found is None and (model / 'summary.json').is_file():
        summary = json.loads((model / 'summary.json').read_text('utf-8'))
        found = summary['hyperparameters'].get('beta')
    if found is None:
        raise ConfigError(f'--beta: {model} does not say the scale of r_theta; set it')
    return float(found)


def _show(args: argparse.Namespace, found: dict[str, Any], about: dict[str, Any]) -> None:
    cut = about['truncated_prompts'] + about['truncated_responses']
    print(
        f'{about["prompts"]} prompts with {about["responses"]} responses; {cut} texts cut, '
        f'{sum(about["dropped"].values())} examples dropped'
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


def run_main() -> None:
    """Shows bad input as one message."""
    logging.basicConfig(format='%(message)s')
    try:
        main()
    except USER_ERRORS as error:
        sys.exit(f'{type(error).__name__}: {error}')


if __name__ == '__main__':
    run_main()
