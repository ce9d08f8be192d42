"""Says whether a run is alive: python -m epa_jax.watch RUN [--stale 900] [--once].

Prints a line for each process whenever its heartbeat changes. Exit status: 0 when all
processes are done (with --once: alive or done), 1 when one is stale, 2 when there is no
such run or a heartbeat cannot be read, 3 when one has failed. A launcher can restart the
run by it. Nothing beats while data and model are read, nor while a step compiles or an
export is written: --stale must be longer than each of them takes.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from epa_jax.config import ConfigError
from epa_jax.heartbeat import Beat, path_of, read_beat
from epa_jax.storage import argument as local_path

ALIVE, STALE, UNREADABLE, FAILED = 0, 1, 2, 3


class Watcher:
    """Follows the heartbeats of a run by the watcher's own clock.

    No two clocks are compared: a process is stale when its file has not changed for so
    long while it was watched. Only the first look must trust the time of the file.
    """

    def __init__(
        self,
        folder: Path,
        stale: float,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ):
        """Reads nothing yet.

        Args:
          folder: the run folder.
          stale: seconds without a beat.
          clock: seconds that never run backwards.
          wall: seconds since 1970, as files have.
        """
        self._folder, self._stale = folder, stale
        self._clock, self._wall = clock, wall
        self._seen: dict[int, tuple[Beat | None, float]] = {}

    def look(self) -> tuple[int, list[str]]:
        """The exit status as of now, and a line for each process that has changed.

        Raises:
          ConfigError: a heartbeat that cannot be read.
        """
        beats = self._beats()
        lines = []
        for process, beat in beats.items():
            known = self._seen.get(process)
            if known is None or known[0] != beat:
                self._seen[process] = (beat, self._clock() - self._age(process, known))
                lines.append(describe(process, beat))
        return self._status(beats), lines

    def finished(self) -> bool:
        """Whether every process was done when last looked at."""
        return bool(self._seen) and all(
            beat is not None and beat.phase == 'done' for beat, _ in self._seen.values()
        )

    def _beats(self) -> dict[int, Beat | None]:
        """The beat of each process; None where it is missing."""
        first = path_of(self._folder, 0)
        count = read_beat(first).processes if first.is_file() else 1
        paths = {process: path_of(self._folder, process) for process in range(count)}
        return {n: read_beat(p) if p.is_file() else None for n, p in paths.items()}

    def _age(self, process: int, known: object) -> float:
        """Seconds since a beat just found was written; of none, since the folder was."""
        if known is not None:
            return 0.0
        path = path_of(self._folder, process)
        written = (path if path.is_file() else self._folder).stat().st_mtime
        return max(self._wall() - written, 0.0)

    def _status(self, beats: dict[int, Beat | None]) -> int:
        now = self._clock()
        status = ALIVE
        for process, beat in beats.items():
            if beat is not None and beat.phase == 'failed':
                return FAILED
            ended = beat is not None and beat.phase == 'done'
            if not ended and now - self._seen[process][1] >= self._stale:
                status = STALE
        return status


def describe(process: int, beat: Beat | None) -> str:
    """One line."""
    if beat is None:
        return f'process {process}: no heartbeat yet'
    return (
        f'process {process}: step {beat.step}/{beat.total_steps}, {beat.phase}, {beat.time}'
    )


def watch(watcher: Watcher, every: float, once: bool) -> int:
    """Looks until all processes are done or one is not well; returns the exit status."""
    while True:
        status, lines = watcher.look()
        print(*lines, sep='\n', end='\n' if lines else '', flush=True)
        if once or status != ALIVE or watcher.finished():
            return status
        time.sleep(every)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('run', type=local_path, help='the run folder')
    parser.add_argument('--stale', type=float, default=900.0, help='seconds without a beat')
    parser.add_argument('--every', type=float, default=10.0, help='seconds between looks')
    parser.add_argument('--once', action='store_true', help='look once')
    args = parser.parse_args()
    try:
        if not args.run.is_dir():
            raise ConfigError(f'{args.run}: no such run folder')
        status = watch(Watcher(args.run, args.stale), args.every, args.once)
    except ConfigError as error:
        print(f'{type(error).__name__}: {error}', file=sys.stderr)
        sys.exit(UNREADABLE)
    sys.exit(status)


if __name__ == '__main__':
    main()
