"""Where the wall time of a run goes: goodput is the share that trains.

Every second belongs to one of `PHASES`, so that their seconds add up to the wall time:

  step        updates; also waiting for data while the devices are still at work
  input       waiting for data with nothing left for the devices to do
  compile     tracing and compiling, wherever it happens
  evaluation  measuring held-out data
  save        the part of saving that training waits for
  restore     reading a checkpoint
  other       reading data and model, caching the reference, the export
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import jax.monitoring

PHASES = ('step', 'input', 'compile', 'evaluation', 'save', 'restore', 'other')
_COMPILING = '/jax/core/compile/'  # JAX's events of tracing, lowering and compiling


class CompileTime:
    """Seconds that the thread which opened it spends compiling, as JAX reports them."""

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []  # ends in order, none overlap
        self._thread = threading.get_ident()
        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def __call__(self) -> float:
        """Seconds until now."""
        return sum(end - start for start, end in self._spans)

    def close(self) -> None:
        """Stops listening."""
        jax.monitoring.unregister_event_duration_listener(self._hear)

    def _hear(self, event: str, duration_secs: float, **_: str | int) -> None:
        """Adds an event that has just ended; it may enclose events that ended before."""
        if not event.startswith(_COMPILING) or threading.get_ident() != self._thread:
            return
        end = time.monotonic()
        start = end - duration_secs
        while self._spans and self._spans[-1][1] > start:
            start = min(start, self._spans.pop()[0])
        self._spans.append((start, end))


class Ledger:
    """Splits wall time into phases; in one phase another may begin and end.

    Attributes:
      seconds: by phase, up to the last change of phase.
    """

    def __init__(
        self,
        compiling: Callable[[], float] = lambda: 0.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Starts in the phase 'other'.

        Args:
          compiling: seconds of compiling so far; they are taken out of the other phases.
          clock: seconds that never run backwards.
        """
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._phases = ['other']
        self._compiling, self._clock = compiling, clock
        self._mark, self._compiled = clock(), compiling()

    @property
    def phase(self) -> str:
        """What is going on."""
        return self._phases[-1]

    @contextlib.contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Gives the time of a `with` block to a phase."""
        self._settle(self.phase)
        self._phases.append(phase)
        try:
            yield
        finally:
            self._settle(phase)
            self._phases.pop()

    @contextlib.contextmanager
    def waiting(self, busy: Callable[[], bool]) -> Iterator[None]:
        """Gives a wait for data to 'input', or to 'step' if the devices are busy after it.

        Args:
          busy: whether devices still compute.
        """
        self._settle(self.phase)
        try:
            yield
        finally:
            self._settle('step' if busy() else 'input')

    def totals(self) -> dict[str, float]:
        """Seconds by phase until now; their sum is the wall time."""
        self._settle(self.phase)
        return dict(self.seconds)

    def goodput(self) -> float:
        """The share of the wall time that went into steps, from 0 to 1."""
        seconds = self.totals()
        return seconds['step'] / max(sum(seconds.values()), 1e-9)

    def _settle(self, phase: str) -> None:
        """Gives the time since the last change to a phase, compiling apart."""
        now, compiled = self._clock(), self._compiling()
        passed = now - self._mark
        compiling = min(compiled - self._compiled, passed)
        self.seconds['compile'] += compiling
        self.seconds[phase] += passed - compiling
        self._mark, self._compiled = now, compiled
