"""What the papers' scripts share: tables, intervals, style of figures."""

import argparse
import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import scipy.stats
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLOURS = {
    'DPO': '#d95f02',
    'EPA': '#1b6ca8',
    'IPM': '#2a9d5c',
    'exact': '#444444',
    'other': '#8e6bbf',
}


def results_of(script: str) -> Path:
    """The folder beside a script that holds what is committed."""
    return Path(script).parent / 'results'


def arguments(script: str, doc: str | None, seeds: int | None = None) -> argparse.Namespace:
    """--out, and --seeds when the script has them.

    Args:
      script: its `__file__`.
      doc: docstring of the script; its first line describes it.
      seeds: how many by default; None for a script without them.
    """
    assert doc
    parser = argparse.ArgumentParser(description=doc.split('\n', 1)[0])
    parser.add_argument(
        '--out', type=Path, default=results_of(script), help='folder to write'
    )
    if seeds is not None:
        parser.add_argument('--seeds', type=int, default=seeds, help='how many')
    return parser.parse_args()


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Writes rows of equal keys; floats with 6 digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator='\n')
        writer.writeheader()
        writer.writerows({k: _short(v) for k, v in row.items()} for row in rows)


def _short(value: object) -> object:
    return f'{value:.6g}' if isinstance(value, float | np.floating) else value


def interval(values: Iterable[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % t-interval; the values are independent runs."""
    x = np.array(list(values), np.float64)
    if len(x) < 2:
        return float(x.mean()), math.nan
    t = scipy.stats.t.ppf(0.975, len(x) - 1)
    return float(x.mean()), float(t * x.std(ddof=1) / math.sqrt(len(x)))


def panels(columns: int, height: float = 3.8) -> tuple[Figure, Sequence[Axes]]:
    """An empty figure with a row of axes."""
    figure = Figure(figsize=(4.8 * columns, height), layout='constrained', dpi=150)
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for ax in axes:
        ax.spines[['top', 'right']].set_visible(False)
        ax.grid(alpha=0.25, linewidth=0.6)
    return figure, list(axes)


def band(
    ax: Axes,
    x: Sequence[float],
    values: Sequence[Iterable[float]],
    colour: str,
    label: str,
) -> None:
    """A line of means with 95 % intervals; `values` are independent runs at each x."""
    mean, half = np.array([interval(each) for each in values]).T
    ax.plot(x, mean, color=colour, label=label, marker='o', markersize=3)
    ax.fill_between(x, mean - half, mean + half, color=colour, alpha=0.15, linewidth=0)


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG and says where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    print(f'figure {path}')
