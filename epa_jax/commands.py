"""What the commands that look at policies share."""

import argparse
import dataclasses
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from epa_jax import sharding
from epa_jax.checkpoints import CheckpointError
from epa_jax.config import ConfigError
from epa_jax.data.sources import DataError
from epa_jax.evals.chat import ChatError
from epa_jax.evals.generation import ROWS
from epa_jax.evals.responding import Responder, Response
from epa_jax.evals.sampling import Sampling
from epa_jax.evals.scoring import ScoreError
from epa_jax.evals.stopping import stop_ids
from epa_jax.formats.names import FormatError
from epa_jax.models.hf_config import SpecError
from epa_jax.policy import Policy, load_policy
from epa_jax.schema import DataConfig, MeshConfig
from epa_jax.storage import StorageError
from epa_jax.storage import argument as local_path
from epa_jax.strict_json import brief

# what a user can mend
USER_ERRORS = (
    ChatError,
    CheckpointError,
    ConfigError,
    DataError,
    FormatError,
    ScoreError,
    SpecError,
    StorageError,
)


def show_errors(main: Callable[[], None]) -> None:
    """Runs a command; bad input is one message and exit status 1, without a traceback."""
    logging.basicConfig(format='%(message)s')
    try:
        main()
    except USER_ERRORS as error:
        sys.exit(brief(f'{type(error).__name__}: {error}'))


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that `policy_of` reads."""
    add = parser.add_argument
    add('model', type=local_path, help='a run folder, a model or adapter folder, or .gguf')
    add('--step', type=int, help='checkpoint of a run folder; its end unless given')
    add(
        '--tokenizer',
        type=local_path,
        help='a folder or .gguf file, if not beside the weights',
    )
    add('--dtype', default='float32', choices=('float32', 'bfloat16'), help='of products')
    add('--mesh_data', type=int, default=1, help='copies of the model')
    add(
        '--mesh_fsdp',
        type=int,
        default=-1,
        help='shards of the parameters; -1: all devices',
    )
    add('--mesh_tensor', type=int, default=1, help='shards of heads, MLP and vocabulary')


def policy_of(args: argparse.Namespace) -> Policy:
    """The policy that a command line names; see `load_policy`."""
    return load_policy(
        args.model,
        step=args.step,
        tokenizer=args.tokenizer,
        dtype=args.dtype,
        mesh=sharding.make_mesh(mesh_config(args)),
    )


def mesh_config(args: argparse.Namespace) -> MeshConfig:
    """The devices that a command line names."""
    return MeshConfig(args.mesh_data, args.mesh_fsdp, args.mesh_tensor)


def add_sampling_arguments(parser: argparse.ArgumentParser, *, max_new_tokens: int) -> None:
    """Arguments that `responder_of` and `template_of` read; not the temperature."""
    add = parser.add_argument
    add('--max_new_tokens', type=int, default=max_new_tokens, help='of a response')
    add('--top_k', type=int, default=0, help='likeliest tokens kept; 0: all')
    add('--top_p', type=float, default=1.0, help='probability kept')
    add('--min_p', type=float, default=0.0, help="least share of the likeliest token's")
    add('--stop', action='append', default=[], help='text that ends a response, left out')
    add('--seed', type=int, default=0, help='of the responses')
    add('--chat_template', default='auto', help="'auto', 'none' or a Jinja file")
    add('--system_prompt', default='', help='before conversations without one')
    add('--rows', type=int, default=ROWS, help='responses a device computes together')


def template_of(args: argparse.Namespace) -> DataConfig:
    """The chat template and system prompt that a command line names."""
    return DataConfig(chat_template=args.chat_template, system_prompt=args.system_prompt)


def responder_of(args: argparse.Namespace, temperature: float) -> Responder:
    """The policy that a command line names, loaded, and how it is to respond.

    Raises:
      ConfigError: values that draw nothing, before the policy is loaded.
    """
    if '' in args.stop:
        raise ConfigError('--stop: expected a text that is not empty')
    sampling = Sampling(
        max_new_tokens=args.max_new_tokens,
        stop_ids=(),
        temperature=temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        min_p=args.min_p,
    )
    policy = policy_of(args)
    ends = stop_ids(policy.tokenizer, args.model, args.stop)
    sampling = dataclasses.replace(sampling, stop_ids=ends)
    return Responder(policy, sampling, tuple(args.stop), args.seed, args.rows)


def print_speed(responses: Sequence[Response], seconds: float) -> None:
    """How many responses came and how fast, to the error output."""
    tokens = sum(response.tokens for response in responses)
    print(
        f'{len(responses)} responses, {tokens} tokens, {tokens / seconds:.0f} tokens/s '
        f'({seconds:.1f} s, compiling included)',
        file=sys.stderr,
    )


def evals_file(args: argparse.Namespace, name: str) -> Path | None:
    """Where a measurement is written: as given, or in the run's folder; None elsewhere.

    Args:
      args: with `out`, `model` and `step`.
      name: of the measurement.
    """
    if args.out or not (args.model / 'checkpoints').is_dir():
        return args.out
    suffix = '' if args.step is None else f'_step_{args.step}'
    return args.model / 'evals' / f'{name}{suffix}.json'
