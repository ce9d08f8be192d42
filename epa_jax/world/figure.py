"""The figure that the quickstart ends with."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from epa_jax.evals.linearity import centred
from epa_jax.world.measure import Outcome, best_of_n

COLOURS = ('#7f7f7f', '#d95f02', '#1b6ca8')  # reference, then the policies
MARKERS = ('s', 'o', 'D')


def draw(
    path: Path, outcomes: Sequence[Outcome], true_NK: np.ndarray, own_NK: np.ndarray
) -> None:
    """Writes a PNG: learned against true reward, and true reward against KL.

    Args:
      path: the file.
      outcomes: the reference first.
      true_NK: true rewards of the responses whose r_theta the outcomes hold.
      own_NK: true rewards of the reference's own samples.
    """
    figure = Figure(figsize=(10, 4.4), layout='constrained', dpi=150)
    left, right = figure.subplots(1, 2)
    _draw_linearity(left, outcomes[1:], true_NK)
    _draw_frontier(right, outcomes, own_NK)
    for axes in (left, right):
        axes.spines[['top', 'right']].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
    figure.savefig(path)


def _draw_linearity(axes: Axes, outcomes: Sequence[Outcome], true_NK: np.ndarray) -> None:
    everywhere = np.ones(true_NK.shape, bool)
    true = centred(true_NK, everywhere).ravel()
    for i, outcome in enumerate(outcomes, start=1):
        learned = centred(outcome.r_theta, everywhere).ravel()
        label = f'{outcome.name}, Pearson {outcome.linearity.mean_pearson:.2f}'
        axes.scatter(true, learned, s=7, alpha=0.35, color=COLOURS[i], linewidths=0)
        axes.scatter([], [], s=30, color=COLOURS[i], label=label)  # for the legend
    ends = np.array([true.min(), true.max()])
    axes.plot(ends, ends, color='black', linewidth=1, linestyle='--', label='slope 1')
    axes.set_xlabel('true reward, less its mean for the prompt')
    axes.set_ylabel(r'$r_\theta$, less its mean for the prompt')
    axes.set_title('Learned reward against true reward', loc='left')
    axes.legend(frameon=False, loc='upper left')


def _draw_frontier(axes: Axes, outcomes: Sequence[Outcome], own_NK: np.ndarray) -> None:
    kl, reward = best_of_n(own_NK)
    axes.plot(kl, reward, color='#bbbbbb', linewidth=1.2, marker='.')
    text = f'best of 1 to {len(kl)} reference samples,\nchosen by the true reward'
    _note(axes, text, (kl[-1], reward[-1]), (-8, 6), '#777777', right=True)
    for outcome, colour, marker in zip(outcomes, COLOURS, MARKERS, strict=True):
        axes.errorbar(
            outcome.kl.mean,
            outcome.reward.mean,
            xerr=outcome.kl.error,
            yerr=outcome.reward.error,
            color=colour,
            marker=marker,
            markersize=7,
            capsize=3,
            linestyle='none',
        )
        at = (outcome.kl.mean, outcome.reward.mean)
        _note(axes, outcome.name, at, (8, -14), colour)
    axes.margins(x=0.12, y=0.12)
    axes.set_xlabel('KL to the reference, nats')
    axes.set_ylabel('true reward of fresh samples')
    axes.set_title('Reward against distance from the reference', loc='left')


def _note(
    axes: Axes,
    text: str,
    at: tuple[float, float],
    offset: tuple[int, int],
    colour: str,
    right: bool = False,
) -> None:
    """Text beside a point, `offset` in points of type."""
    axes.annotate(
        text,
        at,
        offset,
        textcoords='offset points',
        color=colour,
        ha='right' if right else 'left',
    )
