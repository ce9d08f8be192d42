"""One run at a time in a run folder."""

import contextlib
import fcntl
import json
import logging
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import IO

import jax
import numpy as np
from jax.experimental import multihost_utils

from epa_jax.config import ConfigError
from epa_jax.strict_json import parse, shown

log = logging.getLogger(__name__)

NAME = 'lock'
MAX_HOLDER = 4096  # characters


@contextlib.contextmanager
def locked(workdir: str) -> Iterator[None]:
    """Keeps other runs out of a folder; the kernel lets go when the process ends.

    The first process locks for all. Object stores have no locks, nor have some network
    file systems: there it is up to the user, and the log says so. A folder that was made
    for the lock and is still empty at the end is removed again.

    Args:
      workdir: the run folder.

    Raises:
      ConfigError: another run is in it, or it cannot be written.
    """
    refusal, lock = '', None
    made = _missing(pathlib.Path(workdir))
    if '://' in workdir:
        log.warning('%s: no lock on object stores; start one run in it at a time', workdir)
    elif jax.process_index() == 0:
        try:
            lock = _lock(pathlib.Path(workdir))
        except ConfigError as error:
            refusal = str(error)
    if _of_first(bool(refusal)):
        raise ConfigError(refusal or f'workdir={workdir!r}: refused by the first process')
    try:
        yield
    finally:
        if lock is not None:
            _unlock(lock, made)


def _of_first(value: bool) -> bool:
    """The first process's value, in every process."""
    return bool(multihost_utils.broadcast_one_to_all(np.array(value)))


def _missing(folder: pathlib.Path) -> list[pathlib.Path]:
    """The folder and those above it that do not exist, innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def _lock(folder: pathlib.Path) -> IO[str]:
    """The locked file, which tells who holds it.

    Raises:
      ConfigError: see `locked`.
    """
    path = folder / NAME
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = path.open('a+', encoding='utf-8')
        except OSError as error:
            raise ConfigError(
                f'workdir={str(folder)!r} cannot be written: {error.strerror}; choose '
                'another folder'
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(file)
            file.close()
            raise ConfigError(
                f'workdir={str(folder)!r}: another run is in it ({holder}); wait for it, '
                'stop it, or choose another folder'
            ) from None
        except OSError as error:
            log.warning('%s: cannot be locked (%s); start one run at a time', path, error)
        if _is_at(file, path):
            break
        file.close()  # the run that held it has removed it
    file.truncate(0)
    json.dump({'process': os.getpid(), 'host': socket.gethostname()}, file)
    file.flush()
    return file


def _is_at(file: IO[str], path: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _holder(file: IO[str]) -> str:
    file.seek(0)
    try:
        found = parse(file.read(MAX_HOLDER))
        return f'process {shown(found["process"])} on {shown(found["host"])}'
    except (ValueError, LookupError, TypeError):
        return 'which has just begun'


def _unlock(file: IO[str], made: list[pathlib.Path]) -> None:
    """Lets go; removes what holds nothing but the lock."""
    path = pathlib.Path(file.name)
    if path.parent in made and list(path.parent.iterdir()) == [path]:
        path.unlink()
        for folder in made:
            with contextlib.suppress(OSError):  # another run has put something there
                folder.rmdir()
    file.close()
