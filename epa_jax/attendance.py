"""What watches over a run, and from when on it writes into the run folder."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax

from epa_jax.interrupt import Interrupts
from epa_jax.monitor import Monitor
from epa_jax.prepare import Attend
from epa_jax.run_folder import RunFolder
from epa_jax.watchdog import Watchdog


class Guards(NamedTuple):
    """What watches over a run.

    Attributes:
      interrupts: requests to stop.
      monitor: goodput, heartbeats and logs.
      watchdog: an end, should it hang.
    """

    interrupts: Interrupts
    monitor: Monitor
    watchdog: Watchdog

    def alive(self) -> None:
        """Between two batches of the reference's pass.

        Raises:
          interrupt.Interrupted: asked to stop.
        """
        self.watchdog.beat()
        self.monitor.beat()
        if self.interrupts.asked():
            raise self.interrupts.outside()


@contextlib.contextmanager
def attended(guards: Guards, folder: RunFolder, profile: range) -> Iterator[Attend]:
    """Writes heartbeats, logs and traces into a run folder until the block ends.

    They begin at once where an earlier start wrote, whose last beat, perhaps of days ago,
    would else be taken for this one's. A folder without a run gets nothing until `prepare`
    has nothing left to refuse and calls what this yields.

    Args:
      guards: of the run.
      folder: of the run.
      profile: steps to trace.
    """
    monitored = guards.monitor.writing(folder.path, profile)
    begun = folder.begun()

    @contextlib.contextmanager
    def attend(total_steps: int, report: Mapping[str, Any]) -> Iterator[Callable[[], None]]:
        folder.start()
        if jax.process_index() == 0:
            folder.write_data_report(report)
        if not begun:
            writing.enter_context(monitored)
        guards.monitor.expect(total_steps)
        with guards.watchdog:
            yield guards.alive

    with contextlib.ExitStack() as writing:
        if begun:
            writing.enter_context(monitored)
        yield attend
