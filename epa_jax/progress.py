"""How far a run is: a bar on a terminal, lines in a log."""

import datetime
import sys
import time
from collections.abc import Callable, Mapping
from typing import Protocol, TextIO

from rich import progress as rich_progress
from rich.console import Console

# metric -> how it is shown
SHOWN = {
    'loss': 'loss {:.4f}',
    'rewards/accuracies': 'acc {:.3f}',
    'tokens_per_second': '{:,.0f} tokens/s',
}


class Progress(Protocol):
    """Shows how far a run is."""

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Reports `step` updates done, with the newest metrics known."""

    def close(self) -> None:
        """Leaves the terminal as it was."""


def make_progress(
    total: int, *, first: int = 0, every: int = 1, stream: TextIO | None = None
) -> Progress:
    """A bar when `stream` is a terminal, else a line every `every` steps.

    Args:
      total: updates in the whole run.
      first: updates already done when it resumes.
      every: steps between lines; a bar shows every step.
      stream: standard error unless given.
    """
    stream = sys.stderr if stream is None else stream
    if stream.isatty():
        return BarProgress(total, first, Console(file=stream))
    return LineProgress(total, every, stream)


class TimeLeft:
    """Estimates the time left from the steps after the first, which compiles."""

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic):
        self._total = total
        self._clock = clock
        self._start: tuple[int, float] | None = None

    def after(self, step: int) -> datetime.timedelta | None:
        """Time left after `step`; None while there is nothing to measure."""
        now = self._clock()
        if self._start is None:
            self._start = (step, now)
        since, began = self._start
        if step <= since:
            return None
        seconds = (now - began) / (step - since) * (self._total - step)
        return datetime.timedelta(seconds=round(seconds))


def describe(metrics: Mapping[str, float], left: datetime.timedelta | None) -> str:
    """The metrics of `SHOWN` that are there, and the time left."""
    parts = [text.format(metrics[name]) for name, text in SHOWN.items() if name in metrics]
    return '  '.join([*parts, f'left {"?" if left is None else left}'])


class LineProgress:
    """One line every few steps."""

    def __init__(self, total: int, every: int, stream: TextIO):
        self._total = total
        self._every = every
        self._stream = stream
        self._left = TimeLeft(total)

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes a line if this step has one; the last step always does."""
        left = self._left.after(step)
        if step % self._every and step != self._total:
            return
        width = len(str(self._total))
        text = f'step {step:{width}}/{self._total}  {describe(metrics, left)}'
        print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing to restore."""


class SilentProgress:
    """Shows nothing; for all processes but the first."""

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Ignores the step."""

    def close(self) -> None:
        """Nothing to restore."""


class BarProgress:
    """A bar that stays on one line of a terminal."""

    def __init__(self, total: int, first: int, console: Console):
        self._left = TimeLeft(total)
        self._bar = rich_progress.Progress(
            rich_progress.TextColumn('step'),
            rich_progress.MofNCompleteColumn(),
            rich_progress.BarColumn(),
            rich_progress.TextColumn('{task.description}'),
            console=console,
        )
        self._task = self._bar.add_task('', total=total, completed=first)
        self._bar.start()

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Moves the bar."""
        text = describe(metrics, self._left.after(step))
        self._bar.update(self._task, completed=step, description=text)

    def close(self) -> None:
        """Draws the bar a last time and frees the line."""
        self._bar.stop()
