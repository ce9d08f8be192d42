"""The log of each process in the run folder, logs/process_0.jsonl: an object a line."""

import contextlib
import datetime
import json
import logging
import pathlib
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import jax

_STANDARD = set(vars(logging.makeLogRecord({}))) | {'message', 'asctime'}


class JsonFormatter(logging.Formatter):
    """A record as a JSON object: time, level, logger, process, message, and its extras."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, without its end."""
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, Any] = {
            'time': moment.isoformat(timespec='milliseconds'),
            'level': record.levelname,
            'logger': record.name,
            'process': jax.process_index(),
            'message': record.getMessage(),
        }
        line |= {k: v for k, v in vars(record).items() if k not in _STANDARD}
        if record.exc_info and record.exc_info[0] is not None:
            line['exception'] = ''.join(traceback.format_exception(*record.exc_info))
        return json.dumps(line, default=str)


class LenientHandler(logging.FileHandler):
    """A full disk must not hide what ends a run: it costs lines of the log, no more."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Lines that cannot be written are dropped; other errors are shown as ever."""
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)

    def close(self) -> None:
        """Closes the file, whether what is left can be written or not."""
        with contextlib.suppress(OSError):
            super().close()


@contextlib.contextmanager
def process_log(folder: pathlib.Path) -> Iterator[None]:
    """Adds this package's log to the file of this process, and an error that ends it.

    Args:
      folder: the run folder.
    """
    path = folder / 'logs' / f'process_{jax.process_index()}.jsonl'
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = LenientHandler(path, encoding='utf-8')
    handler.setFormatter(JsonFormatter())
    own = logging.getLogger('epa_jax')
    own.addHandler(handler)
    try:
        yield
    except BaseException as error:  # whatever ends a run is in its log
        level = logging.ERROR if isinstance(error, Exception) else logging.WARNING
        fields = {'levelno': level, 'levelname': logging.getLevelName(level)}
        what = f'{type(error).__name__}: {error}'
        record = logging.makeLogRecord(
            fields
            | {'name': own.name, 'msg': what}
            | {'exc_info': (type(error), error, error.__traceback__)}
        )
        handler.handle(record)  # not to the terminal, which shows it anyway
        raise
    finally:
        own.removeHandler(handler)
        handler.close()
