"""How long rows are: the lengths at which a run computes the fewest cells.

A step's prompts are packed into rows of one length, and its last micro-batch is filled
with empty rows. How much of that is padding depends on the length, and which length is
best differs from step to step. A few lengths to choose from leave little padding; each
costs one more compilation.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from epa_jax.data.packing import ROW_MULTIPLE, Layout, automatic_row_length, cells

MOST = 3  # lengths that a run takes by itself
CANDIDATES = 24  # lengths compared
LONGER = 1.5  # times what the longest prompt needs: the longest rows by themselves
PRICE = 0.05  # of the cells that a row twice as long must save, for its attention
COMPILED = 10  # steps that another length must save, for its compilation
SAMPLE = 4096  # prompts whose steps are counted


def sampled(total_steps: int, prompts: int) -> list[int]:
    """Numbers of the steps to count, evenly spread over a run.

    Args:
      total_steps: of the run.
      prompts: of a step.
    """
    count = min(max(SAMPLE // prompts, 8), 64, total_steps)
    return np.linspace(0, total_steps - 1, count).astype(int).tolist()


def choose(
    steps: Sequence[Sequence[int]],
    longest: int,
    layout: Callable[[int], Layout],
    total_steps: int,
    most: int = 0,
    limit: int = 0,
) -> list[int]:
    """Row lengths of a run, shortest first.

    Args:
      steps: tokens of every prompt with its responses, of some of the run's steps.
      longest: the most that any has, of all steps and of evaluation.
      layout: shape of a micro-batch with rows of this length.
      total_steps: of the run.
      most: lengths to take at most; 0 takes another only where it saves the run more
        steps than its compilation costs.
      limit: the longest row, and the only length unless `most` is 2 or more; 0 is half as
        long again as the longest prompt needs.

    Returns:
      One length or more; the last holds `longest`.
    """
    if limit and most <= 1:
        return [limit]
    lengths = _candidates(longest, limit)
    computed = _computed(steps, [layout(length) for length in lengths])
    found = _best(lengths, computed, longest, 1)
    for count in range(2, min(most or MOST, len(lengths)) + 1):
        better = _best(lengths, computed, longest, count)
        needed = 0.0 if most else COMPILED * (count - len(found.chosen)) / total_steps
        if better.cost < found.cost * (1 - needed):
            found = better
    return [lengths[i] for i in found.chosen]


class _Found(NamedTuple):
    """Lengths, by their places, and what all steps cost with them."""

    cost: float
    chosen: tuple[int, ...]


def _candidates(longest: int, limit: int) -> list[int]:
    """Lengths to compare, ascending; at least one holds `longest`."""
    least = automatic_row_length(longest)
    top = limit or int(least * LONGER) // ROW_MULTIPLE * ROW_MULTIPLE
    step = -(-top // (ROW_MULTIPLE * CANDIDATES)) * ROW_MULTIPLE
    return sorted({*range(step, top + 1, step), min(least, top), top})


def _computed(steps: Sequence[Sequence[int]], layouts: Sequence[Layout]) -> np.ndarray:
    """Cells of each step with each layout: [layouts, steps], inf where rows are short."""
    return np.array(
        [
            [
                cells(step, layout) if max(step) <= layout.row_length else np.inf
                for step in steps
            ]
            for layout in layouts
        ]
    )


def _best(lengths: Sequence[int], computed: np.ndarray, longest: int, count: int) -> _Found:
    """The cheapest `count` of the lengths, of which the last holds `longest`."""
    least = automatic_row_length(longest)

    def cost(chosen: tuple[int, ...]) -> float:
        cells_of_all = float(computed[list(chosen)].min(axis=0).sum())
        return cells_of_all * (1 + PRICE * (lengths[chosen[-1]] / least - 1))

    combinations = itertools.combinations(range(len(lengths)), count)
    fitting = (chosen for chosen in combinations if lengths[chosen[-1]] >= longest)
    return min(_Found(cost(chosen), chosen) for chosen in fitting)
