"""Rates a policy's implicit reward: python -m epa_jax.intrinsic RUN --data rated.jsonl."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from epa_jax.commands import add_model_arguments, evals_file, policy_of, show_errors
from epa_jax.config import ConfigError, from_flat
from epa_jax.data.load import load_datasets
from epa_jax.evals.intrinsic import Rated, intrinsic
from epa_jax.evals.scoring import ROWS, score
from epa_jax.policy import Policy, load_policy
from epa_jax.prepare import loss_of
from epa_jax.schema import DataConfig, RunConfig
from epa_jax.types import Role, TokenExample

RATINGS = ('as_is', 'logit')


@dataclasses.dataclass(frozen=True)
class Scale:
    """How log-probs become the reward that a run's loss trains.

    Attributes:
      beta: scale.
      reference: model whose log-probs are subtracted, or None.
      per_token: divide by the response's length.
    """

    beta: float
    reference: Path | None
    per_token: bool


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog='python -m epa_jax.intrinsic',
        description='The implicit reward against ratings of responses. What is not given '
        "is as in the run's configuration.",
    )
    add_model_arguments(parser)
    add = parser.add_argument
    add('--data', required=True, help='rated responses, or pairs')
    add('--reference', help="a model, or 'none': log-probs alone")
    add('--beta', type=float, help='scale of the reward')
    add('--tokens', choices=('sum', 'mean'), help='of log-probs over tokens')
    add('--layout', default='auto', help='of the data, see epa_jax.data.layouts')
    add('--ratings', default='as_is', choices=RATINGS, help='logit: of probabilities')
    add('--limit', type=int, default=0, help='prompts at most; 0: all')
    add('--max_prompt_tokens', type=int, help='longer ones are cut')
    add('--max_response_tokens', type=int, help='longer ones are cut')
    add('--chat_template', help="'auto', 'none' or a Jinja file")
    add('--system_prompt', help='before conversations without one')
    add('--bad_lines', choices=('error', 'skip'), help='lines that cannot be read')
    add('--rows', type=int, default=ROWS, help='rows a device computes together')
    add('--seed', type=int, default=0, help='of the bootstrap')
    add('--out', type=Path, help='JSON file; of a run, in its evals/')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Prints every metric with its interval."""
    args = arguments(argv)
    run = _run_config(args.model)
    scale = scale_of(args, run)
    policy = policy_of(args)
    examples, counts = read(args, run, policy)
    values = score_examples(policy, examples, args.rows)
    if scale.reference is not None:
        values -= score_examples(_reference(scale, args, run, policy), examples, args.rows)
    rated, has_ratings = beside_ratings(examples, values, scale)
    if args.ratings == 'logit':
        rated = dataclasses.replace(rated, r_true=_logit(rated.r_true, rated.mask))
    found = intrinsic(rated, args.seed)
    if not has_ratings:  # chosen or rejected is an order, not a distance
        found = {k: v for k, v in found.items() if not k.startswith('slope1')}
    about = {
        'beta': scale.beta,
        'per_token': scale.per_token,
        'reference': str(scale.reference),
    }
    if jax.process_index() == 0:
        _show(args, found, counts | about)


def scale_of(args: argparse.Namespace, run: RunConfig | None) -> Scale:
    """The reward of the run's loss, with what the command line sets.

    Raises:
      ConfigError: something is neither given nor known of a run.
    """
    loss = run and loss_of(run)
    if args.reference is None and (loss is None or run is None):
        raise ConfigError(
            f"--reference: {args.model} is no run folder; name one, or 'none'"
        )
    if args.beta is None and loss is None:
        raise ConfigError(f'--beta: {args.model} is no run folder; set the scale')
    reference = None if args.reference in (None, 'none') else Path(args.reference)
    if args.reference is None and loss and run and loss.needs_reference:
        reference = Path(run.reference.path or run.model.path)
    return Scale(
        beta=loss.beta if args.beta is None and loss else args.beta,
        reference=reference,
        per_token=bool(loss and loss.needs.per_token)
        if args.tokens is None
        else args.tokens == 'mean',
    )


def _reference(
    scale: Scale, args: argparse.Namespace, run: RunConfig | None, policy: Policy
) -> Policy:
    """The reference, with the tokenizer of the policy."""
    assert scale.reference is not None
    own = args.tokenizer
    if run and own is None and args.reference is None:
        own = Path(run.model.tokenizer or run.model.path)
    found = load_policy(scale.reference, mesh=policy.mesh, dtype=args.dtype, tokenizer=own)
    if found.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise ConfigError(
            f'{scale.reference}: its tokenizer is not that of {args.model}; name the one '
            'of both with --tokenizer'
        )
    return found


def read(
    args: argparse.Namespace, run: RunConfig | None, policy: Policy
) -> tuple[list[TokenExample], dict[str, Any]]:
    """Examples with all their responses, and what became of the data."""
    names = (
        'max_prompt_tokens',
        'max_response_tokens',
        'chat_template',
        'system_prompt',
        'bad_lines',
    )
    given = {name: getattr(args, name) for name in names}
    cfg = dataclasses.replace(
        run.data if run else DataConfig(),
        train=args.data,
        eval='',
        eval_examples=0,
        layout=args.layout,
        max_examples=args.limit,
        **{name: value for name, value in given.items() if value is not None},
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


def beside_ratings(
    examples: list[TokenExample], values_NK: np.ndarray, scale: Scale
) -> tuple[Rated, bool]:
    """Rewards beside ratings, and whether the data have any.

    Without, the chosen response is rated 1 and the others 0.
    """
    r_true = np.full(values_NK.shape, np.nan)
    lengths = np.zeros(values_NK.shape, int)
    known = not any(np.isnan(example.ratings).any() for example in examples)
    for n, example in enumerate(examples):
        count = len(example.response_ids)
        r_true[n, :count] = example.ratings if known else example.roles == Role.CHOSEN
        lengths[n, :count] = [len(ids) for ids in example.response_ids]
    r_theta = scale.beta * values_NK
    if scale.per_token:
        r_theta = r_theta / np.maximum(lengths, 1)
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


def _run_config(folder: Path) -> RunConfig | None:
    """The configuration of a run folder; None of other models."""
    if not (folder / 'checkpoints').is_dir():
        return None
    return from_flat(json.loads((folder / 'config.json').read_text('utf-8')))


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
    show_errors(main)


if __name__ == '__main__':
    run_main()
