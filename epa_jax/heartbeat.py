"""A sign of life in the run folder: heartbeats/process_0.json, one for each process."""

import dataclasses
import datetime
import json
import logging
import math
import os
import pathlib
import time
import typing
from collections.abc import Callable
from typing import Any

import jax

from epa_jax.config import ConfigError
from epa_jax.run_folder import write_json

EVERY = 5.0  # seconds between beats, at least
CHANGE = 1.0  # seconds, where the phase is another
MAX_PROCESSES = 1_000_000

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Beat:
    """What a file holds.

    Attributes:
      step: updates done.
      total_steps: of the run; 0 while it reads its data.
      phase: what was going on, see `goodput.PHASES`; at the end 'done', 'failed' when an
        error ended the run, 'stopped' when something else did.
      process: index of the process.
      processes: how many there are.
      pid: of the process, on its host.
      time: when it was written, UTC, ISO 8601.
    """

    step: int
    total_steps: int
    phase: str
    process: int
    processes: int
    pid: int
    time: str


class Heart:
    """Writes the beats of this process, at most one every `EVERY` seconds in a phase.

    The loop itself writes them, so that a run which hangs stops beating.

    Attributes:
      total_steps: of the run.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        total_steps: int,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Removes what a killed process was writing; writes nothing yet.

        Args:
          folder: the run folder.
          total_steps: of the run.
          clock: seconds that never run backwards.
        """
        self._path = path_of(folder, jax.process_index())
        for partial in self._path.parent.glob(f'{self._path.name}.*.partial'):
            partial.unlink(missing_ok=True)
        self.total_steps = total_steps
        self._clock = clock
        self._last = -math.inf
        self._phase = ''

    def beat(self, step: int, phase: str, force: bool = False) -> bool:
        """Writes a beat if it is time, or if forced; says whether it did.

        A run goes on when its folder cannot be written to, with a line in the log.
        """
        now = self._clock()
        passed = now - self._last
        if not force and passed < (EVERY if phase == self._phase else CHANGE):
            return False
        self._last, self._phase = now, phase
        beat = Beat(
            step=step,
            total_steps=self.total_steps,
            phase=phase,
            process=jax.process_index(),
            processes=jax.process_count(),
            pid=os.getpid(),
            time=datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
        )
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, dataclasses.asdict(beat))
        except OSError as error:
            log.warning('no heartbeat: %s', error)
            return False
        return True


def path_of(folder: pathlib.Path, process: int) -> pathlib.Path:
    """The file of a process."""
    return folder / 'heartbeats' / f'process_{process}.json'


def read_beat(path: pathlib.Path) -> Beat:
    """Reads a file.

    Raises:
      ConfigError: it is not one that `Heart` wrote.
    """
    try:
        found: Any = json.loads(path.read_text('utf-8'))
        beat = Beat(**found)
        for name, kind in typing.get_type_hints(Beat).items():
            if type(getattr(beat, name)) is not kind:
                raise TypeError(f'{name}: expected {kind.__name__}')
        if not 0 <= beat.process < beat.processes <= MAX_PROCESSES:
            raise ValueError(f'process {beat.process} of {beat.processes}')
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f'{path}: not a heartbeat: {error}') from None
    return beat
