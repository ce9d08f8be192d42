"""Joins the processes of one run through JAX's own runtime, and shares out work."""

import os

import jax

from epa_jax.config import ConfigError

HEARTBEAT_SECONDS = 100
START_SECONDS = 300
# statuses of a program that would fail in one process too
OWN_FAULT = ('INVALID_ARGUMENT', 'RESOURCE_EXHAUSTED', 'UNIMPLEMENTED')


def connect(
    heartbeat_seconds: int = HEARTBEAT_SECONDS, start_seconds: int = START_SECONDS
) -> None:
    """Makes this process one of a job, before anything uses a device.

    On TPU pod slices, GKE, Slurm and Open MPI, JAX finds the others by itself. Elsewhere
    JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID
    name them.

    Args:
      heartbeat_seconds: after so long without a sign of life of one process, JAX ends the
        others.
      start_seconds: how long to wait for the others.

    Raises:
      ConfigError: no such job, or the others did not come.
    """
    try:
        jax.distributed.initialize(
            num_processes=_number('JAX_NUM_PROCESSES'),
            process_id=_number('JAX_PROCESS_ID'),
            heartbeat_timeout_seconds=heartbeat_seconds,
            initialization_timeout=start_seconds,
        )
    except (ValueError, RuntimeError) as error:
        raise ConfigError(
            f'--distributed: {error} On machines where JAX does not find the other '
            'processes by itself, set JAX_COORDINATOR_ADDRESS (host:port of process 0), '
            'JAX_NUM_PROCESSES and JAX_PROCESS_ID; leave --distributed out for one process'
        ) from error


def _number(name: str) -> int | None:
    text = os.environ.get(name)
    if text is None:
        return None
    if not text.isdigit():
        raise ConfigError(f'{name}={text!r}: expected a number')
    return int(text)


def own_part(count: int) -> slice:
    """The part of `count` things in a row that this process is to do."""
    processes, index = jax.process_count(), jax.process_index()
    return slice(count * index // processes, count * (index + 1) // processes)


def lost_peer(error: BaseException) -> bool:
    """Whether it was raised because another process is gone, as far as its status says.

    Where JAX itself notices first, after `heartbeat_seconds`, it aborts the process.
    """
    if not isinstance(error, jax.errors.JaxRuntimeError) or jax.process_count() == 1:
        return False
    return str(error).partition(':')[0] not in OWN_FAULT
