"""Opens data by path or hub name and reads it record by record."""

import collections
import contextlib
import dataclasses
import gzip
import itertools
import pathlib
import tempfile
import zlib
from collections.abc import Iterator
from typing import Any, TextIO

import datasets

from epa_jax import storage
from epa_jax.config import ConfigError
from epa_jax.data.layouts import LAYOUTS, Record, RecordError, to_example
from epa_jax.strict_json import JsonError, parse, shown
from epa_jax.types import Example

MAX_LINE = 1 << 26  # characters of a line
MAX_BLANK = 1_000_000  # empty lines in a row
MAX_WHOLE = 1 << 28  # characters of a .json file, which is read at once
# A compressed file may hold this many times its size; text is compressed 3 to 20 times.
MAX_EXPANSION = 100
SMALL = 1 << 26  # characters that any compressed file may hold
SUFFIXES = ('.jsonl', '.jsonl.gz', '.json', '.json.gz', '.parquet')


class DataError(ValueError):
    """Data that cannot be read; the message names file, line and reason."""


@dataclasses.dataclass
class ReadReport:
    """What a source held.

    Attributes:
      source: as configured.
      read: examples read.
      skipped: bad lines by reason, only with `bad_lines='skip'`.
      first_skipped: where each reason was first met.
    """

    source: str
    read: int = 0
    skipped: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter
    )
    first_skipped: dict[str, str] = dataclasses.field(default_factory=dict)


def read_examples(
    source: str, *, layout: str = 'auto', bad_lines: str = 'error', limit: int = 0
) -> tuple[list[Example], ReadReport]:
    """Reads all examples of a source.

    Args:
      source: a .jsonl, .json or .parquet file (JSON possibly .gz), a folder written by
        `datasets.save_to_disk`, either also in a bucket, or a hub name, optionally
        'name:split'.
      layout: 'auto' or a key of `layouts.LAYOUTS`.
      bad_lines: 'error', or 'skip' to skip and count.
      limit: read at most this many examples; 0 reads all.

    Raises:
      DataError: a source that cannot be opened, a bad line, or no example at all.
      ConfigError: an unknown layout.
    """
    if layout != 'auto' and layout not in LAYOUTS:
        raise ConfigError(
            f'data.layout={layout!r}: expected auto or one of {", ".join(LAYOUTS)}'
        )
    report = ReadReport(source)
    examples: list[Example] = []
    for origin, record in records(source):
        if limit and len(examples) == limit:
            break
        try:
            if isinstance(record, JsonError):
                raise RecordError(str(record))
            examples.append(to_example(record, layout, origin))
        except RecordError as error:
            if bad_lines == 'error':
                raise DataError(
                    f'{origin}: {error}. Mend the line, or skip and count such lines with '
                    "data.bad_lines='skip'"
                ) from None
            report.skipped[str(error)] += 1
            report.first_skipped.setdefault(str(error), origin)
    if not examples:
        raise DataError(f'{source}: no examples; {sum(report.skipped.values())} bad lines')
    report.read = len(examples)
    return examples, report


def records(source: str) -> Iterator[tuple[str, Any]]:
    """(where, record) in order; a line that is not JSON is given as its error."""
    try:
        path = storage.local(source).expanduser()
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # such as a name far too long
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f'{shown(source)}: cannot be looked for: {reason}') from None
    if is_folder:
        yield from _numbered(source, _rows(path))
    elif is_file:
        yield from _from_file(path)
    elif _looks_like_a_file(source):
        raise DataError(f'{source}: no such file or folder (in {pathlib.Path.cwd()})')
    else:
        yield from _numbered(source, _from_hub(source))


def _looks_like_a_file(source: str) -> bool:
    return source.endswith(SUFFIXES) or source.startswith(('/', './', '../', '~'))


def _numbered(source: str, rows: Any) -> Iterator[tuple[str, Any]]:
    for number, row in enumerate(rows, start=1):
        yield f'{source}:{number}', row


def _from_file(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
    if path.name.endswith('.parquet'):
        yield from _numbered(str(path), _from_parquet(path))
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
                yield from _numbered(str(path), _json_list(path, _whole(path, file, most)))
            else:
                yield from _lines(path, file, most)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f'{path}: cannot be read: {error}') from error


def _from_parquet(path: pathlib.Path) -> Iterator[Record]:
    """Rows as they stream from the file; nothing is left in the user's cache."""
    with tempfile.TemporaryDirectory() as cache:
        try:
            yield from datasets.Dataset.from_parquet(
                str(path), streaming=True, cache_dir=cache
            )
        except Exception as error:  # Arrow raises many kinds over a damaged file
            raise DataError(f'{path}: cannot be read as parquet: {error}') from error


def _lines(path: pathlib.Path, file: TextIO, most: int | None) -> Iterator[tuple[str, Any]]:
    """Records and errors, with never more than a line in memory.

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
        if not blank:
            try:
                yield f'{path}:{number}', parse(line.strip())
            except JsonError as error:
                yield f'{path}:{number}', error


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


def _rows(path: pathlib.Path) -> Iterator[Record]:
    found = _from_disk(path)
    try:
        yield from found
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
