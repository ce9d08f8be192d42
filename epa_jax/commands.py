"""What the commands that look at policies share."""

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from epa_jax import sharding
from epa_jax.checkpoints import CheckpointError
from epa_jax.config import ConfigError
from epa_jax.data.sources import DataError
from epa_jax.evals.scoring import ScoreError
from epa_jax.formats.names import FormatError
from epa_jax.models.hf_config import SpecError
from epa_jax.policy import Policy, load_policy
from epa_jax.schema import MeshConfig

# what a user can mend
USER_ERRORS = (
    CheckpointError,
    ConfigError,
    DataError,
    FormatError,
    ScoreError,
    SpecError,
)


def show_errors(main: Callable[[], None]) -> None:
    """Runs a command; bad input is one message and exit status 1, without a traceback."""
    logging.basicConfig(format='%(message)s')
    try:
        main()
    except USER_ERRORS as error:
        sys.exit(f'{type(error).__name__}: {error}')


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that `policy_of` reads."""
    add = parser.add_argument
    add('model', type=Path, help='a run folder, a model or adapter folder, or .gguf')
    add('--step', type=int, help='checkpoint of a run folder; its end unless given')
    add('--tokenizer', type=Path, help='a folder or .gguf file, if not beside the weights')
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
