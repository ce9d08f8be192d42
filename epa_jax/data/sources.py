"""Opens data by path or hub name and reads it record by record."""

import contextlib
import gzip
import itertools
import pathlib
import tempfile
import zlib
from collections.abc import Iterator
from typing import Any, TextIO

import datasets
import jax
from pyarrow import parquet

from epa_jax import storage
from epa_jax.data.layouts import Record
from epa_jax.distributed import own_part
from epa_jax.strict_json import JsonError, parse, shown

MAX_LINE = 1 << 26  # characters of a line
MAX_BLANK = 1_000_000  # empty lines in a row
MAX_WHOLE = 1 << 28  # characters of a .json file, which is read at once
# A compressed file may hold this many times its size; text is compressed 3 to 20 times.
MAX_EXPANSION = 100
SMALL = 1 << 26  # characters that any compressed file may hold
SUFFIXES = ('.jsonl', '.jsonl.gz', '.json', '.json.gz', '.parquet')


class DataError(ValueError):
    """Data that cannot be read; the message names file, line and reason."""


def records(source: str, own: bool = False) -> Iterator[tuple[str, Any]]:
    """(where, record) in order; a line that is not JSON is given as its error.

    Args:
      source: a .jsonl, .json or .parquet file (JSON possibly .gz), a folder written by
        `datasets.save_to_disk`, either also in a bucket, or a hub name, optionally
        'name:split'.
      own: those of this process's part alone.

    Raises:
      DataError: a source that cannot be opened.
    """
    own = own and jax.process_count() > 1
    try:
        path = storage.local(source).expanduser()
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # such as a name far too long
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f'{shown(source)}: cannot be looked for: {reason}') from None
    if is_folder:
        yield from _rows(source, path, own)
    elif is_file:
        yield from _from_file(path, own)
    elif _looks_like_a_file(source):
        raise DataError(f'{source}: no such file or folder (in {pathlib.Path.cwd()})')
    else:
        yield from _selected(source, _from_hub(source), own)


def _looks_like_a_file(source: str) -> bool:
    return source.endswith(SUFFIXES) or source.startswith(('/', './', '../', '~'))


def _numbered(source: str, rows: Any, first: int = 0) -> Iterator[tuple[str, Any]]:
    for number, row in enumerate(rows, start=first + 1):
        yield f'{source}:{number}', row


def _selected(source: str, rows: datasets.Dataset, own: bool) -> Iterator[tuple[str, Any]]:
    first = 0
    if own:
        part = own_part(len(rows))
        first, rows = part.start, rows.select(range(part.start, part.stop))
    yield from _numbered(source, rows, first)


def _from_file(path: pathlib.Path, own: bool) -> Iterator[tuple[str, Any]]:
    if path.name.endswith('.parquet'):
        yield from _from_parquet(path, own)
        return
    if not path.name.endswith(SUFFIXES):
        raise DataError(f'{path}: expected a file ending in {", ".join(SUFFIXES)}')
    compressed = path.name.endswith('.gz')
    opener = gzip.open if compressed else open
    try:
        most = max(MAX_EXPANSION * path.stat().st_size, SMALL) if compressed else None
        # invalid bytes are told from the rest line by line, see `strict_json`
        with opener(path, 'rt', encoding='utf-8-sig', errors='surrogateescape') as file:
            if path.name.removesuffix('.gz').endswith('.json'):
                rows = _json_list(path, _whole(path, file, most))
                part = own_part(len(rows)) if own else slice(0, len(rows))
                yield from _numbered(str(path), rows[part], part.start)
            else:
                yield from _records(path, file, most, own)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f'{path}: cannot be read: {error}') from error


def _from_parquet(path: pathlib.Path, own: bool) -> Iterator[tuple[str, Record]]:
    """Rows as they stream from the file; nothing is left in the user's cache."""
    with tempfile.TemporaryDirectory() as cache:
        try:
            rows = datasets.Dataset.from_parquet(str(path), streaming=True, cache_dir=cache)
            part = slice(0, None)
            if own:
                part = own_part(parquet.read_metadata(path).num_rows)
                rows = rows.skip(part.start).take(part.stop - part.start)
            yield from _numbered(str(path), rows, part.start)
        except Exception as error:  # Arrow raises many kinds over a damaged file
            raise DataError(f'{path}: cannot be read as parquet: {error}') from error


def _records(
    path: pathlib.Path, file: TextIO, most: int | None, own: bool
) -> Iterator[tuple[str, Any]]:
    """Records and errors; the lines of other processes are counted, not parsed."""
    part = slice(0, None)
    if own:
        part = own_part(sum(1 for _ in _lines(path, file, most)))
        file.seek(0)
    lines = enumerate(_lines(path, file, most), start=1)
    for number, line in itertools.islice(lines, part.start, part.stop):
        if line:
            try:
                yield f'{path}:{number}', parse(line)
            except JsonError as error:
                yield f'{path}:{number}', error


def _lines(path: pathlib.Path, file: TextIO, most: int | None) -> Iterator[str]:
    """Lines without blanks at their ends, with never more than one in memory.

    Raises:
      DataError: a line of more than `MAX_LINE` characters, or more than `most` in all.
    """
    read = blank = 0
    for number in itertools.count(1):
        line = file.readline(MAX_LINE + 1)
        if not line:
            return
        if len(line) > MAX_LINE:
            raise DataError(
                f'{path}:{number}: a line of more than {MAX_LINE} characters; expected one '
                'record a line'
            )
        read += len(line)
        if most is not None and read > most:
            raise _too_much(path, most)
        blank = 0 if line.strip() else blank + 1
        if blank > MAX_BLANK:
            raise DataError(f'{path}:{number}: more than {MAX_BLANK} empty lines in a row')
        yield line.strip()


def _whole(path: pathlib.Path, file: TextIO, most: int | None) -> str:
    """All of a file, if it is not too large to be read at once."""
    limit = MAX_WHOLE if most is None else min(most, MAX_WHOLE)
    text = file.read(limit + 1)
    if len(text) <= limit:
        return text
    if limit == most:
        raise _too_much(path, most)
    raise DataError(
        f'{path}: more than {MAX_WHOLE} characters in one JSON list; write a record a line '
        'to a .jsonl file, which is read line by line'
    )


def _too_much(path: pathlib.Path, most: int) -> DataError:
    return DataError(
        f'{path}: holds more than {most} characters, {MAX_EXPANSION} times its size, which '
        'text never does; if you trust it, decompress it first'
    )


def _json_list(path: pathlib.Path, text: str) -> list[Any]:
    try:
        value = parse(text)
    except JsonError as error:
        hint = '; name a file of one record a line .jsonl' if '\n{' in text else ''
        raise DataError(f'{path}: {error}{hint}') from error
    if not isinstance(value, list):
        raise DataError(f'{path}: expected a list of records, found {type(value).__name__}')
    return value


def _rows(source: str, path: pathlib.Path, own: bool) -> Iterator[tuple[str, Record]]:
    found = _from_disk(path)
    try:
        yield from _selected(source, found, own)
    except Exception as error:  # Arrow raises many kinds over a damaged file
        raise DataError(f'{path}: cannot be read: {error}') from error


def _from_disk(path: pathlib.Path) -> Any:
    try:
        with _no_progress_bars():
            found = datasets.load_from_disk(str(path))
    except Exception as error:  # JSON, features and Arrow files, each of which may be bad
        raise DataError(
            f'{path}: expected a folder written by datasets.save_to_disk: '
            f'{type(error).__name__}: {error}'
        ) from error
    if isinstance(found, datasets.DatasetDict):
        if len(found) != 1:
            raise DataError(
                f'{path}: holds the splits {", ".join(found)}; name the folder of one, '
                f'such as {path / next(iter(found))}'
            )
        return next(iter(found.values()))
    return found


def _from_hub(source: str) -> Any:
    name, _, split = source.partition(':')
    try:
        with _no_progress_bars():
            return datasets.load_dataset(name, split=split or 'train')
    except Exception as error:  # the hub's client raises many kinds
        raise DataError(
            f'{source}: neither a file or folder here nor a data set that the hub gives: '
            f'{type(error).__name__}: {error}'
        ) from error


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Several bars of one data set would only hide the run's own log."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
