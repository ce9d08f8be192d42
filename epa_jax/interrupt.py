"""Ends before the end: a run saves, leaves with a documented code, can be run again."""

import contextlib
import errno
import itertools
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

import jax
from jax.experimental import multihost_utils

RUN_AGAIN = 75  # EX_TEMPFAIL: the same command goes on from what is saved
BY_HAND = 128 + signal.SIGINT  # what shells call a program ended by Ctrl-C


# What becomes of a disk: full, beyond a quota or a limit, read-only, closed to the user.
STORAGE_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ESTALE,
)
GO_ON = 'the same command goes on from the newest checkpoint'
# Counts the questions of this process, which JAX compares among processes. Runs that
# follow one another share it: to JAX it must never run backwards.
_QUESTIONS = itertools.count(1)


def of_storage(error: OSError) -> str | None:
    """What to tell the user of an error that a disk may give; None for other errors."""
    if error.errno not in STORAGE_ERRORS:
        return None
    return f'{error.filename or "a file"}: {error.strerror}; mend that, then {GO_ON}'


class Interrupted(SystemExit):
    """Leaves a run that was asked to stop; no `except Exception` holds it up.

    Attributes:
      code: exit code of the process: `RUN_AGAIN`, or `BY_HAND` after Ctrl-C.
      message: what happened, and how to go on.
    """

    def __init__(self, code: int, message: str):
        super().__init__(code)
        self.message = message

    def __str__(self) -> str:
        return self.message


class Interrupts:
    """Listens for SIGTERM and Ctrl-C while it is open, in the main thread.

    Before the loop, and after it, a notice raises `Interrupted` at once. While `deferred`,
    the loop asks after every step and every batch of an evaluation. The processes of
    `jax.distributed` agree through JAX's preemption service, which takes SIGTERM itself:
    a notice to any of them stops all at the same question, so all must ask the same ones.
    """

    def __init__(self) -> None:
        self._notice: int | None = None
        self._deferred = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> 'Interrupts':
        if threading.current_thread() is threading.main_thread():
            taken = jax.distributed.is_initialized()
            listened = [signal.SIGINT] if taken else [signal.SIGINT, signal.SIGTERM]
            self._before = {s: signal.signal(s, self._receive) for s in listened}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within it a notice waits until `asked` is called, or for the end.

        Raises:
          Interrupted: at the end, for a notice that came after the last step began.
        """
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self._notice is not None and not jax.distributed.is_initialized():
            raise self.outside()

    def asked(self) -> bool:
        """Whether to save and stop now; every process calls this as often as the others."""
        if jax.distributed.is_initialized():
            return multihost_utils.reached_preemption_sync_point(next(_QUESTIONS))
        return self._notice is not None

    def stopped(self, step: int, workdir: str) -> Interrupted:
        """What to raise once the state of `step` is being saved."""
        by_hand = self._notice == signal.SIGINT
        name = signal.Signals(self._notice or signal.SIGTERM).name
        message = f'{name}: stopped after step {step}, which {workdir} holds; {GO_ON}'
        return Interrupted(BY_HAND if by_hand else RUN_AGAIN, message)

    def outside(self) -> Interrupted:
        """What to raise where there is no step to save."""
        number = self._notice or signal.SIGTERM  # perhaps to another process
        message = f'{signal.Signals(number).name}: stopped outside of training; {GO_ON}'
        return Interrupted(BY_HAND if number == signal.SIGINT else RUN_AGAIN, message)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        """Notes the first notice; a second Ctrl-C stops at once, saving nothing."""
        if self._notice is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self._notice = number
        name = signal.Signals(number).name
        if jax.distributed.is_initialized():
            os.kill(os.getpid(), signal.SIGTERM)  # to the preemption service
        elif not self._deferred:
            raise self.outside()
        again = '; Ctrl-C again stops at once' if number == signal.SIGINT else ''
        # not the log: this may run in the middle of a write to it
        os.write(2, f'\n{name}: saving after this step, then stopping{again}\n'.encode())
