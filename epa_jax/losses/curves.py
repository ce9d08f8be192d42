"""The figure of losses: each against the margin, with its gradient."""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from epa_jax.losses.definition import Loss, Value
from epa_jax.losses.make import make_loss
from epa_jax.losses.registry import LOSSES
from epa_jax.types import ResponseTable, Role

COLUMNS = 6
LENGTH = 20  # tokens of every response
GAP = 6.0  # the margin runs over -GAP .. GAP, in units of beta * (a - b)
# Scales that bring the shapes of different conventions into view.
SHOWN: Mapping[str, Mapping[str, Value]] = {
    'ipo': {'beta': 0.5},
    'sppo_hard': {'beta': 0.5},
    'cpo': {'nll_tokens': 'mean'},
    'orpo': {'beta': 1.0},
    'infonca': {'rating_temperature': 1.0},
    'nca': {'rating_temperature': 1.0},
}


def draw(path: Path) -> None:
    """Writes a PNG with one panel a loss: value (solid) and slope (dashed).

    A pair of responses whose log-probs differ by the margin, half of it on each side of
    a reference of equal log-probs; for losses of several negatives, one of each.
    """
    names = list(LOSSES)
    rows = -(-len(names) // COLUMNS)
    figure = Figure(figsize=(2.5 * COLUMNS, 2.1 * rows), layout='constrained', dpi=130)
    panels = figure.subplots(rows, COLUMNS, sharex=True).ravel()
    for axes, name in zip(panels, names, strict=False):
        _panel(axes, make_loss(name, SHOWN.get(name, {})))
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    figure.supxlabel('margin: beta * (log-ratio of the chosen - that of the rejected)')
    figure.suptitle('Loss of a prompt (solid) and its derivative by the margin (dashed)')
    figure.savefig(path)


def _panel(axes: Axes, loss: Loss) -> None:
    margins = np.linspace(-GAP, GAP, 241)
    values, slopes = curve(loss, margins)
    axes.plot(margins, values, color='#1b6ca8', linewidth=1.6)
    axes.set_title(loss.name, loc='left', fontsize=9)
    axes.tick_params(labelsize=7)
    axes.axvline(0, color='#cccccc', linewidth=0.6, zorder=0)
    axes.axhline(0, color='#cccccc', linewidth=0.6, zorder=0)
    axes.spines[['top', 'right']].set_visible(False)
    axes.plot(margins, slopes, color='#d95f02', linewidth=1.1, linestyle='--')


def curve(loss: Loss, margins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Loss of a prompt, and its derivative, at each margin beta * (a - b).

    Each margin is a batch of its own, so baselines and sorts are of one prompt.
    """
    tokens = LENGTH if loss.needs.per_token else 1

    def value(margin: jax.Array) -> jax.Array:
        return loss.fn(_prompt(margin / loss.beta * tokens))[0]

    both = jax.vmap(jax.value_and_grad(value))
    values, slopes = both(jnp.asarray(margins, jnp.float32))
    return np.asarray(values), np.asarray(slopes)


def _prompt(gap: jax.Array) -> ResponseTable:
    """Chosen, strong and weak responses with log-ratios gap / 2, -gap / 2 and 0."""
    base = -4.0 * LENGTH
    return ResponseTable(
        logps=jnp.array([[0.5, -0.5, 0.0]]) * gap + base,
        ref_logps=jnp.full((1, 3), base),
        lengths=jnp.full((1, 3), LENGTH, jnp.int32),
        roles=jnp.array([[Role.CHOSEN, Role.REJECTED, Role.WEAK]], jnp.int8),
        ratings=jnp.array([[2.0, 1.0, jnp.nan]]),
    )
