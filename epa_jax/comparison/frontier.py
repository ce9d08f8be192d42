"""Reward against KL to the reference: one point a policy."""

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from epa_jax.evals.bootstrap import Interval, mean_interval
from epa_jax.evals.kl import kl_intervals


@dataclasses.dataclass(frozen=True)
class Point:
    """A policy, measured on its own samples.

    Attributes:
      label: of the curve that it belongs to.
      folder: of the run; '' for a reference.
      step: of the checkpoint; None for the end of a run.
      kl: estimates by name, see `evals.kl`, nats.
      reward: mean reward.
      tokens: mean length of a response.
      prompts: how many.
      samples: of each prompt.
    """

    label: str
    folder: str
    step: int | None
    kl: dict[str, Interval]
    reward: Interval
    tokens: float
    prompts: int
    samples: int


def point(
    label: str,
    folder: str,
    step: int | None,
    log_ratios_NS: np.ndarray,
    rewards_NS: np.ndarray,
    lengths_NS: np.ndarray,
    seed: int = 0,
) -> Point:
    """Estimates with bootstrap intervals over prompts.

    Args:
      label: see `Point`, as the next two.
      folder: of the run.
      step: of the checkpoint.
      log_ratios_NS: log(policy / reference) of S samples for each of N prompts.
      rewards_NS: their rewards.
      lengths_NS: their tokens.
      seed: of the bootstrap.
    """
    return Point(
        label=label,
        folder=folder,
        step=step,
        kl=kl_intervals(log_ratios_NS, seed),
        reward=mean_interval(rewards_NS.mean(axis=1, dtype=np.float64), seed),
        tokens=float(lengths_NS.mean()),
        prompts=len(rewards_NS),
        samples=rewards_NS.shape[1],
    )


def as_csv(points: Sequence[Point]) -> str:
    """A row a point."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator='\n')
    kinds = list(points[0].kl)
    names = [f'kl_{kind}' for kind in kinds] + ['reward']
    ends = [f'{name}{end}' for name in names for end in ('', '_low', '_high')]
    writer.writerow(['label', 'run', 'step', *ends, 'tokens', 'prompts', 'samples'])
    for p in points:
        values = [x for kind in kinds for x in p.kl[kind]] + list(p.reward)
        step = 'end' if p.step is None else p.step
        numbers = [f'{x:.6g}' for x in (*values, p.tokens)]
        writer.writerow([p.label, p.folder, step, *numbers, p.prompts, p.samples])
    return out.getvalue()


def to_json(points: Sequence[Point], measured: Mapping[str, Any]) -> dict[str, Any]:
    """What `from_json` reads; `measured` says by what and on what."""
    return {
        'measured': dict(measured),
        'points': [_known(dataclasses.asdict(point)) for point in points],
    }


def from_json(saved: Mapping[str, Any], label: str, folder: str) -> list[Point]:
    """Points of a run as saved; its own get this label and folder, a reference none."""
    out = []
    for fields in saved['points']:
        own = {'label': label, 'folder': folder} if fields['folder'] else {}
        intervals = {
            'kl': {name: _interval(ends) for name, ends in fields['kl'].items()},
            'reward': _interval(fields['reward']),
        }
        out.append(Point(**{**fields, **own, **intervals}))
    return out


def _known(value: Any) -> Any:
    """Without NaN, which JSON has not."""
    if isinstance(value, dict):
        return {name: _known(each) for name, each in value.items()}
    if isinstance(value, tuple):
        return [_known(each) for each in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def _interval(ends: Sequence[float | None]) -> Interval:
    return Interval(*(float('nan') if end is None else end for end in ends))


def draw(points: Sequence[Point], kind: str = 'k3') -> Figure:
    """Reward against KL with intervals; a line through the points of a run."""
    figure = Figure(figsize=(6.4, 4.6), layout='constrained', dpi=150)
    ax = figure.subplots()
    draw_on(ax, points, kind)
    ax.spines[['top', 'right']].set_visible(False)
    ax.grid(alpha=0.25, linewidth=0.6)
    return figure


def draw_on(ax: Axes, points: Sequence[Point], kind: str = 'k3') -> None:
    """The same on given axes."""
    labels = list(dict.fromkeys(p.label for p in points))
    for folder in dict.fromkeys((p.label, p.folder) for p in points):
        mine = [p for p in points if (p.label, p.folder) == folder]
        mine.sort(key=lambda p: (p.step is None, p.step or 0))
        label = mine[0].label
        first = next(p for p in points if p.label == label) is mine[0]
        ax.errorbar(
            [p.kl[kind].value for p in mine],
            [p.reward.value for p in mine],
            yerr=_ends([p.reward for p in mine]),
            xerr=_ends([p.kl[kind] for p in mine]),
            color=f'C{labels.index(label) % 10}' if mine[0].folder else 'black',
            marker='o' if mine[0].folder else '*',
            markersize=5 if mine[0].folder else 11,
            linewidth=1,
            label=label if first else None,
        )
    ax.set_xlabel(f'KL to the reference, nats a response (estimate {kind})')
    ax.set_ylabel('mean reward of fresh samples')
    ax.legend(frameon=False, fontsize=8)


def _ends(intervals: Sequence[Interval]) -> np.ndarray:
    """Distances to both ends, [2, P]; 0 where they are not known."""
    ends = [(x.value - x.low, x.high - x.value) for x in intervals]
    return np.nan_to_num(np.array(ends).T).clip(0)
