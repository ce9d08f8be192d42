"""The small files of a run in a bucket: written here, copied there from time to time.

An object is written whole and cannot be appended to, so a file that grows (metrics, event
files, logs) stands in a local folder, and what changed is copied every minute, before every
save, and at the end.
"""

import contextlib
import logging
import pathlib
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence

from epa_jax import storage

log = logging.getLogger(__name__)

SECONDS = 60.0  # between two looks at what has changed
SHARE = 0.05  # at most this much of the time goes into copying


class Mirror:
    """A local folder and the one in a bucket that it is copied to.

    Attributes:
      folder: the local one; its name is that of the other.
      url: of the other.
    """

    def __init__(self, url: str, names: Sequence[str]):
        """Makes the local folder.

        Args:
          url: the folder in the bucket.
          names: of the files that a run reads again: copied from there, where they are.

        Raises:
          StorageError: the bucket cannot be read.
        """
        self.url = storage.check(url).rstrip('/')
        self._files = storage.filesystem()
        self._parent = pathlib.Path(tempfile.mkdtemp(prefix='epa_jax.'))
        self.folder = self._parent / self.url.rpartition('/')[2]
        self.folder.mkdir()
        self._lock = threading.Lock()
        with storage.explained(self.url):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    data = self._files.cat_file(f'{self.url}/{name}')
                    (self.folder / name).parent.mkdir(exist_ok=True)
                    (self.folder / name).write_bytes(data)
        self._copied = self._state()

    def _state(self) -> dict[pathlib.Path, tuple[int, int]]:
        """Size and time of change of every file that is not being written."""
        found = {}
        for file in self.folder.rglob('*'):
            hidden = any(part[0] == '.' for part in file.relative_to(self.folder).parts)
            if hidden or file.suffix == '.partial':
                continue
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                stat = file.stat()
                if file.is_file():
                    found[file] = (stat.st_size, stat.st_mtime_ns)
        return found

    def sync(self) -> None:
        """Copies what has changed since the last time.

        Raises:
          StorageError: it cannot be written.
        """
        with self._lock, storage.explained(self.url):
            for file, state in sorted(self._state().items()):
                if self._copied.get(file) == state:
                    continue
                name = file.relative_to(self.folder).as_posix()
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    data = file.read_bytes()
                    self._files.pipe_file(f'{self.url}/{name}', data)
                    self._copied[file] = state

    def try_sync(self) -> None:
        """The same; what cannot be written is logged, and written the next time."""
        try:
            self.sync()
        except storage.StorageError as error:
            log.warning('%s; tried again later', error)

    @contextlib.contextmanager
    def copying(self, seconds: float = SECONDS) -> Iterator[None]:
        """Copies in the background while within, and at the end.

        Args:
          seconds: between two looks, if copying is quick.

        Raises:
          StorageError: at the end, if it cannot be written; the local folder then stays.
            It hides no other error, which may ask for another exit code.
        """
        ended = threading.Event()
        worker = threading.Thread(
            target=self._copy_until, args=(ended, seconds), name='mirror', daemon=True
        )
        worker.start()
        try:
            yield
        except BaseException:
            ended.set()
            worker.join()
            try:
                self._finish()
            except storage.StorageError as error:
                log.error('%s', error)
            raise
        ended.set()
        worker.join()
        self._finish()

    def _copy_until(self, ended: threading.Event, seconds: float) -> None:
        took = 0.0
        while not ended.wait(max(seconds, took / SHARE)):
            began = time.monotonic()
            self.try_sync()
            took = time.monotonic() - began

    def _finish(self) -> None:
        try:
            self.sync()
        except storage.StorageError as error:
            raise storage.StorageError(
                f'{error}. What the run wrote last is in {self.folder}'
            ) from error
        self.remove()

    def remove(self) -> None:
        """Removes the local folder."""
        shutil.rmtree(self._parent)
