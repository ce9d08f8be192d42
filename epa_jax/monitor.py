"""Watches a run from its start to its end: goodput, step times, memory, signs of life."""

import contextlib
import logging
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

from epa_jax.distributed import lost_peer
from epa_jax.goodput import CompileTime, Ledger
from epa_jax.heartbeat import Heart
from epa_jax.process_log import process_log
from epa_jax.profiling import Profiler, peak_memory
from epa_jax.step_times import StepTimes, slowest

log = logging.getLogger(__name__)


class Monitor:
    """What the loop reports to beside its metrics.

    Attributes:
      ledger: wall time by phase.
      times: of steps.
    """

    def __init__(self, compiling: Callable[[], float] = lambda: 0.0):
        """Writes no file until `writing`.

        Args:
          compiling: seconds of compiling so far.
        """
        self.ledger = Ledger(compiling)
        self.times = StepTimes()
        self._profile = range(0)
        self._profiler = Profiler(pathlib.Path(), range(0))
        self._heart: Heart | None = None
        self._step = 0
        self._compiled = 0.0
        self._waited = 0.0

    @contextlib.contextmanager
    def writing(self, folder: pathlib.Path, profile: range = range(0)) -> Iterator[None]:
        """Writes heartbeats, logs and traces into a run folder while the block lasts.

        Args:
          folder: the run folder.
          profile: steps to trace.
        """
        self._profile = profile
        self._profiler = Profiler(folder / 'profile', profile)
        self._heart = Heart(folder, 0)
        self._heart.beat(0, self.ledger.phase, force=True)
        phase = 'stopped'
        try:
            with process_log(folder):
                yield
            phase = 'done'
        except Exception as error:
            phase = 'stopped' if lost_peer(error) else 'failed'
            raise
        finally:
            self._profiler.close()
            self._heart.beat(self._step, phase, force=True)

    def expect(self, total_steps: int) -> None:
        """Tells how long the run is, once that is known."""
        if self._profile and self._profile.start > total_steps:
            log.warning('log.profile_steps: the run ends before, at step %d', total_steps)
        if self._heart is not None:
            self._heart.total_steps = total_steps
            self._heart.beat(self._step, self.ledger.phase, force=True)

    @contextlib.contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """See `Ledger.during`; the heart beats as the phase begins."""
        with self.ledger.during(phase):
            self.beat()
            yield

    def waiting(self, metrics: Any) -> contextlib.AbstractContextManager:
        """See `Ledger.waiting`; devices are busy while one of `metrics` is not known."""
        return self.ledger.waiting(
            lambda: not all(leaf.is_ready() for leaf in jax.tree.leaves(metrics))
        )

    def stepping(self, step: int) -> contextlib.AbstractContextManager:
        """Wraps handing a step to the devices."""
        return self._profiler.begin(step)

    def done(self, step: int, seconds: float) -> None:
        """The devices are done with a step.

        Args:
          step: updates done.
          seconds: that it took; one that compiled is no outlier.
        """
        self._step = step
        self._profiler.end(step)
        compiled = self.ledger.totals()['compile']
        if compiled == self._compiled:
            self.times.add(step, seconds)
        self._compiled = compiled
        self.beat()

    def beat(self) -> None:
        """A sign of life in the run folder, see `Heart.beat`."""
        if self._heart is not None:
            self._heart.beat(self._step, self.ledger.phase)

    def metrics(self) -> dict[str, float]:
        """Goodput and memory, to be written beside the metrics of a step."""
        memory = {f'memory/peak_{name}': value for name, value in peak_memory().items()}
        return {'goodput': self.ledger.goodput()} | memory

    def compare_processes(self) -> None:
        """Logs which process keeps the others waiting; all processes call it together."""
        waited = self.ledger.totals()['input']
        process, most, median = slowest(waited - self._waited)
        self._waited = waited
        if jax.process_index() == 0 and most > 1.0 and most > 2 * median:
            log.warning(
                'process %d kept the others waiting: %.3g s without data since the last '
                'evaluation, where the median process spent %.3g s',
                process,
                most,
                median,
            )

    def summary(self) -> dict[str, Any]:
        """For summary.json: goodput, seconds by phase, outliers, memory."""
        seconds = self.ledger.totals()
        return {
            'goodput': seconds['step'] / max(sum(seconds.values()), 1e-9),
            'phase_seconds': seconds,
            'step_outliers': self.times.outliers,
            'peak_memory': peak_memory(),
        }


@contextlib.contextmanager
def monitored() -> Iterator[Monitor]:
    """A monitor that tells compiling from the rest."""
    compiling = CompileTime()
    try:
        yield Monitor(compiling)
    finally:
        compiling.close()
