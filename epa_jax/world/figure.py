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
INCHES = (10, 5)
DPI = 150


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
    figure = Figure(figsize=INCHES, layout='constrained', dpi=DPI)
    left, right = figure.subplots(1, 2)
    _draw_linearity(left, outcomes[1:], true_NK)
    _draw_frontier(right, outcomes, own_NK)
    for axes in (left, right):
        axes.spines[['top', 'right']].set_visible(False)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.set_axisbelow(True)
        # below the axes, where it can hide nothing
        axes.legend(frameon=False, loc='upper center', bbox_to_anchor=(0.5, -0.14), ncols=2)
    figure.savefig(path)


def _draw_linearity(axes: Axes, outcomes: Sequence[Outcome], true_NK: np.ndarray) -> None:
    everywhere = np.ones(true_NK.shape, bool)
    true = centred(true_NK, everywhere).ravel()
    learned = [centred(outcome.r_theta, everywhere).ravel() for outcome in outcomes]
    colours = np.repeat(COLOURS[1:], true.size)
    points = np.column_stack([np.tile(true, len(outcomes)), np.concatenate(learned)])
    # in random order, so that no policy lies on top
    order = np.random.default_rng(0).permutation(len(points))
    x, y = points[order].T
    axes.scatter(x, y, s=7, alpha=0.4, color=colours[order], linewidths=0)
    for outcome, colour in zip(outcomes, COLOURS[1:], strict=True):
        label = f'{outcome.name}, Pearson {outcome.linearity.mean_pearson:.2f}'
        axes.scatter([], [], s=30, color=colour, label=label)  # for the legend
    ends = np.array([true.min(), true.max()])
    axes.plot(ends, ends, color='black', linewidth=1, linestyle='--', label='slope 1')
    axes.set_xlabel('true reward, less its mean for the prompt')
    axes.set_ylabel(r'$r_\theta$, less its mean for the prompt')
    axes.set_title('Learned reward against true reward', loc='left')


def _draw_frontier(axes: Axes, outcomes: Sequence[Outcome], own_NK: np.ndarray) -> None:
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
            label=outcome.name,
        )
    kl, reward = best_of_n(own_NK)
    label = f'best of 1 to {len(kl)} by true reward'
    axes.plot(kl, reward, color='#bbbbbb', linewidth=1.2, marker='.', label=label, zorder=1)
    axes.set_xlabel('KL to the reference, nats')
    axes.set_ylabel('true reward of fresh samples')
    axes.set_title('Reward against distance (± one standard error)', loc='left')
