"""The implicit reward of a policy, beta log(policy / reference), as its loss trains it.

Losses without a reference train beta log(policy) itself, its sum or mean over tokens.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from epa_jax.commands import add_model_arguments, policy_of
from epa_jax.config import ConfigError, from_flat
from epa_jax.data.load import load_datasets
from epa_jax.evals.scoring import ROWS, score
from epa_jax.formats.files import read_json
from epa_jax.policy import Policy, load_policy
from epa_jax.prepare import loss_of
from epa_jax.schema import DataConfig, RunConfig
from epa_jax.storage import local
from epa_jax.types import TokenExample


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


@dataclasses.dataclass(frozen=True)
class Rewarded:
    """Examples with the reward of each response.

    Attributes:
      examples: N of them, of K responses at most.
      rewards: float [N, K]; NaN where an example has fewer responses.
      about: of the data and the scale, for a report.
    """

    examples: list[TokenExample]
    rewards: np.ndarray
    about: dict[str, Any]


def add_implicit_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that `implicit_rewards` reads."""
    add_model_arguments(parser)
    add = parser.add_argument
    add('--data', required=True, help='rated responses, or pairs')
    add('--reference', help="a model, or 'none': log-probs alone")
    add('--beta', type=float, help='scale of the reward')
    add('--tokens', choices=('sum', 'mean'), help='of log-probs over tokens')
    add('--layout', default='auto', help='of the data, see epa_jax.data.layouts')
    add('--limit', type=int, default=0, help='prompts at most; 0: all')
    add('--max_prompt_tokens', type=int, help='longer ones are cut')
    add('--max_response_tokens', type=int, help='longer ones are cut')
    add('--chat_template', help="'auto', 'none' or a Jinja file")
    add('--system_prompt', help='before conversations without one')
    add('--bad_lines', choices=('error', 'skip'), help='lines that cannot be read')
    add('--rows', type=int, default=ROWS, help='rows a device computes together')


def implicit_rewards(args: argparse.Namespace, *, min_strong: int = 1) -> Rewarded:
    """Rewards every response of a data set; what is not given is as in the run.

    Args:
      args: of `add_implicit_arguments`.
      min_strong: as in `load_datasets`; 0 also keeps pairs of equal responses.

    Raises:
      ConfigError: something is neither given nor known of a run.
      DataError: data that cannot be read.
    """
    run = _run_config(args.model)
    scale = scale_of(args, run)
    policy = policy_of(args)
    examples, counts = read(args, run, policy, min_strong)
    values = score_examples(policy, examples, args.rows)
    if scale.reference is not None:
        values -= score_examples(_reference(scale, args, run, policy), examples, args.rows)
    rewards = scale.beta * values
    if scale.per_token:
        for row, example in zip(rewards, examples, strict=True):
            row[: len(example.response_ids)] /= [len(ids) for ids in example.response_ids]
    about = {
        'beta': scale.beta,
        'per_token': scale.per_token,
        'reference': str(scale.reference),
    }
    return Rewarded(examples, rewards, counts | about)


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
    reference = None if args.reference in (None, 'none') else local(args.reference)
    if args.reference is None and loss and run and loss.needs_reference:
        reference = local(run.reference.path or run.model.path)
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
        own = local(run.model.tokenizer or run.model.path)
    found = load_policy(scale.reference, mesh=policy.mesh, dtype=args.dtype, tokenizer=own)
    if found.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise ConfigError(
            f'{scale.reference}: its tokenizer is not that of {args.model}; name the one '
            'of both with --tokenizer'
        )
    return found


def read(
    args: argparse.Namespace, run: RunConfig | None, policy: Policy, min_strong: int
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
    loaded = load_datasets(cfg, policy.tokenizer, min_strong=min_strong)
    report = loaded.tokenised
    counts = {
        'prompts': len(loaded.train),
        'responses': sum(len(example.response_ids) for example in loaded.train),
        'dropped': dict(loaded.read[0].skipped + report.dropped),
        'dropped_responses': dict(report.dropped_responses),
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


def _run_config(folder: Path) -> RunConfig | None:
    """The configuration of a run folder; None of other models."""
    if not (folder / 'checkpoints').is_dir():
        return None
    return from_flat(read_json(folder / 'config.json'))
