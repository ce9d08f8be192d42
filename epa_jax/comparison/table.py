"""Measurements of groups of runs as text, CSV and HTML."""

import csv
import html
import io
import math
from collections.abc import Sequence

from epa_jax.comparison.runs import Group
from epa_jax.evals.bootstrap import Interval


def rows(groups: Sequence[Group]) -> tuple[list[str], list[list[Interval | None]]]:
    """Names of measurements, and each one's value in every group; None where absent."""
    found = [group.measured() for group in groups]
    names = list(dict.fromkeys(name for each in found for name in each))
    return names, [[each.get(name) for each in found] for name in names]


def text(groups: Sequence[Group]) -> list[str]:
    """A line a measurement, a column a group, numbered; the groups' labels first."""
    names, values = rows(groups)
    head = [f'[{i}] {group.label} ({seeds(group)})' for i, group in enumerate(groups, 1)]
    table = [['', *(f'[{i}]' for i in range(1, len(groups) + 1))]]
    for name, row in zip(names, values, strict=True):
        table.append([name, *map(cell, row)])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        '  '.join(
            [row[0].ljust(widths[0])]
            + [word.rjust(width) for word, width in zip(row[1:], widths[1:], strict=True)]
        )
        for row in table
    ]
    return [*head, '', *lines]


def seeds(group: Group) -> str:
    """Such as '3 seeds', or the folder of the only run."""
    if len(group.runs) == 1:
        return str(group.runs[0].folder)
    return f'{len(group.runs)} seeds'


def cell(interval: Interval | None) -> str:
    """Four digits, with half the width of the interval where it is known."""
    if interval is None or math.isnan(interval.value):
        return '-'
    value = f'{interval.value:.4g}'
    half = (interval.high - interval.low) / 2
    return value if math.isnan(half) else f'{value} ± {half:.2g}'


def as_csv(groups: Sequence[Group]) -> str:
    """A row a group and measurement."""
    names, values = rows(groups)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator='\n')
    writer.writerow(['group', 'runs', 'measurement', 'value', 'low', 'high'])
    for i, group in enumerate(groups):
        for name, row in zip(names, values, strict=True):
            interval = row[i]
            if interval is not None:
                writer.writerow([group.label, len(group.runs), name, *interval])
    return out.getvalue()


def as_html(groups: Sequence[Group]) -> str:
    """A table with a column a group."""
    names, values = rows(groups)
    labels = [f'{group.label}<br><small>{seeds(group)}</small>' for group in groups]
    head = ''.join(f'<th>{label}</th>' for label in map(_escaped, labels))
    body = ''.join(
        f'<tr><th>{html.escape(name)}</th>'
        + ''.join(f'<td>{html.escape(cell(value))}</td>' for value in row)
        + '</tr>\n'
        for name, row in zip(names, values, strict=True)
    )
    return f'<table>\n<tr><th></th>{head}</tr>\n{body}</table>'


def _escaped(label: str) -> str:
    """Escaped, but for the markup between a label and its seeds."""
    name, _, rest = label.partition('<br><small>')
    inner = rest.removesuffix('</small>')
    return f'{html.escape(name)}<br><small>{html.escape(inner)}</small>'
