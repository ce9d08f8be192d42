"""Ends a process that no longer gets anywhere, such as one that waits for a hung peer."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

from epa_jax.interrupt import GO_ON, RUN_AGAIN


class Watchdog:
    """While it is open, `beat` must be called at least so often; measured monotonically.

    It may be opened again.

    Attributes:
      seconds: longest time between two beats; 0 allows any.
    """

    def __init__(self, seconds: float, end: Callable[[int], None] = os._exit):
        """Sets the limit.

        Args:
          seconds: see above.
          end: called with the exit code, on a thread of its own. The default runs no
            clean-up, which would wait for what hangs.
        """
        self.seconds = seconds
        self._end = end
        self._last = time.monotonic()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> 'Watchdog':
        self.beat()
        self._closed.clear()  # it may have been open before
        if self.seconds > 0:
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def beat(self) -> None:
        """Says that there is progress."""
        self._last = time.monotonic()

    def _watch(self) -> None:
        while not self._closed.wait(max(self._last + self.seconds - time.monotonic(), 0)):
            silence = time.monotonic() - self._last
            if silence < self.seconds:
                continue
            print(
                f'no step or batch has ended for {silence:.0f} s (max_step_minutes), '
                f'perhaps because another process hangs; {GO_ON}. Where every thread is:',
                file=sys.stderr,
                flush=True,
            )
            faulthandler.dump_traceback(all_threads=True)
            self._end(RUN_AGAIN)
            return
