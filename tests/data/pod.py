"""Several processes as threads of one: JAX's number of each, and what they send."""

import concurrent.futures
import contextlib
import threading

import jax

from epa_jax.data import exchange


class Pod:
    """Runs a function in as many threads as there are processes to be.

    One of them runs at a time, until it waits for the others: libraries that compile, such
    as jinja2 on Python 3.11, are not all made for threads.

    Attributes:
      sent: bytes of all processes, by exchange.
    """

    def __init__(self, monkeypatch, count):
        self.count, self.sent = count, []
        self._here = threading.local()
        self._meeting = threading.Barrier(count, timeout=300)
        self._turn = threading.Lock()
        self._desk = [b''] * count
        monkeypatch.setattr(jax, 'process_count', lambda: count)
        monkeypatch.setattr(jax, 'process_index', self.index)
        monkeypatch.setattr(exchange, '_gather', self._gather)

    def index(self):
        return getattr(self._here, 'index', 0)

    def _gather(self, data):
        self._desk[self.index()] = data
        with self._waiting():
            if self._meeting.wait() == 0:
                self.sent.append(list(self._desk))
            self._meeting.wait()
            return self.sent[-1]

    @contextlib.contextmanager
    def _waiting(self):
        self._turn.release()
        try:
            yield
        finally:
            self._turn.acquire()

    def run(self, function):
        """What each process returns or raises."""

        def work(index):
            self._here.index = index
            with self._turn:
                try:
                    return function()
                except Exception as error:
                    return error

        with concurrent.futures.ThreadPoolExecutor(self.count) as threads:
            return list(threads.map(work, range(self.count)))

    def agreed(self, function):
        """What all return, which does not fail in any; the first's."""
        found = self.run(function)
        for each in found:
            if isinstance(each, Exception):
                raise each
        return found[0]
