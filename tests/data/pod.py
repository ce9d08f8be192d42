"""Several processes as threads of one: JAX's number of each, and what they send."""

import concurrent.futures
import threading

import jax

from epa_jax.data import exchange


class Pod:
    """Runs a function in as many threads as there are processes to be.

    Attributes:
      sent: bytes of all processes, by exchange.
    """

    def __init__(self, monkeypatch, count):
        self.count, self.sent = count, []
        self._here = threading.local()
        self._meeting = threading.Barrier(count, timeout=60)
        self._desk = [b''] * count
        monkeypatch.setattr(jax, 'process_count', lambda: count)
        monkeypatch.setattr(jax, 'process_index', self.index)
        monkeypatch.setattr(exchange, '_gather', self._gather)

    def index(self):
        return getattr(self._here, 'index', 0)

    def _gather(self, data):
        self._desk[self.index()] = data
        if self._meeting.wait() == 0:
            self.sent.append(list(self._desk))
        self._meeting.wait()
        return self.sent[-1]

    def run(self, function):
        """What each process returns or raises."""

        def work(index):
            self._here.index = index
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
