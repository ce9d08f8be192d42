"""Lines that contestants write, one JSON object each, and what is made of them.

Standard library only: contestants import it in environments of their own.
"""

import csv
import dataclasses
import json
import resource
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

KIB = 1024


class RecordsError(ValueError):
    """A file of lines that cannot be used; the message says why."""


@dataclasses.dataclass(frozen=True)
class Spread:
    """A median with the smallest and the largest value, and how many there were."""

    median: float
    low: float
    high: float
    count: int


class Recorder:
    """Writes the lines of one process and times its steps.

    Lines have a `kind`: 'header' (what runs where), 'step' (seconds, peak resident bytes
    of the process so far, whether something was compiled) and 'end'.
    """

    def __init__(self, path: Path | None = None):
        """Lines go to `path`, or to standard output without one."""
        self._path = path
        if path is not None:
            path.write_text('', 'utf-8')
        self._mark = time.perf_counter()
        self._step = 0

    def write(self, kind: str, **values: Any) -> None:
        """Writes one line."""
        line = json.dumps({'kind': kind, **values})
        if self._path is None:
            print(line, flush=True)
            return
        with self._path.open('a', encoding='utf-8') as file:
            file.write(f'{line}\n')

    def start(self) -> None:
        """Starts the clock of the next step."""
        self._mark = time.perf_counter()

    def step(self, *, compiled: bool, **values: Any) -> None:
        """Writes a step that ends now: seconds since the one before."""
        now = time.perf_counter()
        self._step += 1
        self.write(
            'step',
            step=self._step,
            seconds=now - self._mark,
            peak_bytes=peak_bytes(),
            compiled=compiled,
            **values,
        )
        self._mark = time.perf_counter()

    def end(self, **values: Any) -> None:
        """Writes the last line."""
        self.write('end', peak_bytes=peak_bytes(), **values)


def peak_bytes() -> int:
    """Most memory that this process has held so far, bytes resident (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file.

    Raises:
      RecordsError: the process that wrote it did not reach its end.
    """
    lines = [json.loads(line) for line in path.read_text('utf-8').splitlines()]
    kinds = [line.get('kind') for line in lines]
    if kinds[:1] != ['header'] or kinds[-1:] != ['end']:
        raise RecordsError(
            f'{path}: expected a header first and an end last, found {kinds[:1]} and '
            f'{kinds[-1:]}; the process was cut short, so delete the file and run it again'
        )
    return lines


def steps(lines: Iterable[Mapping[str, Any]], compiled: bool) -> list[float]:
    """Seconds of the steps that compiled something, or of those that did not."""
    return [
        line['seconds']
        for line in lines
        if line['kind'] == 'step' and line['compiled'] == compiled
    ]


def spread(values: Sequence[float]) -> Spread:
    """Median and range.

    Raises:
      RecordsError: no values.
    """
    if not values:
        raise RecordsError('nothing was measured: no step without compilation; run more')
    return Spread(statistics.median(values), min(values), max(values), len(values))


def mean_step(runs: Iterable[Iterable[Mapping[str, Any]]]) -> Spread:
    """Seconds of a mean step, from several processes that ran the same steps.

    Steps differ in size, so their median would be that of one of them: median and range
    are those of each step over the processes, then averaged over the steps.

    Args:
      runs: lines of each process; steps that compiled are left out.

    Raises:
      RecordsError: no step without compilation.
    """
    taken: dict[int, list[float]] = {}
    for line in (line for run in runs for line in run if line['kind'] == 'step'):
        if not line['compiled']:
            taken.setdefault(line['step'], []).append(line['seconds'])
    found = [spread(seconds) for seconds in taken.values()] or [spread([])]
    return Spread(
        statistics.fmean(each.median for each in found),
        statistics.fmean(each.low for each in found),
        statistics.fmean(each.high for each in found),
        len(found),
    )


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows with the keys of the first as columns; floats to 5 significant digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator='\n')
        writer.writeheader()
        writer.writerows({k: _cell(v) for k, v in row.items()} for row in rows)


def merged(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    setting: Sequence[str],
    since: Mapping[str, str] | None = None,
) -> list[Mapping[str, Any]]:
    """Rows of the file, those of the settings measured anew replaced, if there is a file.

    Args:
      path: a file of `write_csv`, or nothing.
      rows: what was measured now.
      setting: the columns that tell what a row was measured with.
      since: columns that files of earlier versions lack, with what their rows hold there.
    """
    if not path.is_file():
        return list(rows)

    def key(row: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(str(row[name]) for name in setting)

    with path.open(encoding='utf-8', newline='') as file:
        before = [row | added(row, since or {}) for row in csv.DictReader(file)]
    new = {key(row) for row in rows}
    return [*[row for row in before if key(row) not in new], *rows]


def added(row: Mapping[str, str], since: Mapping[str, str]) -> dict[str, str]:
    """The columns that a row lacks."""
    return {name: value for name, value in since.items() if name not in row}


def _cell(value: Any) -> Any:
    return f'{value:.5g}' if isinstance(value, float) else value


def show(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a table for the terminal."""
    columns = list(rows[0])
    cells = [columns, *[[str(_cell(row[c])) for c in columns] for row in rows]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return '\n'.join(
        '  '.join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in cells
    )
