"""From a step's micro-batches to its sums, also for losses that couple prompts."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from epa_jax.frozen import Frozen
from epa_jax.losses import Loss
from epa_jax.programs import Programs
from epa_jax.train_step import Accumulator, Coupled
from epa_jax.types import PackedBatch, ResponseTable, Role, TrainState


class Whole(NamedTuple):
    """The prompts of several tables, places without one left out.

    Attributes:
      table: of all prompts, in order, on the host.
      places: for each table, bool [N]: where it has a prompt.
    """

    table: ResponseTable
    places: list[np.ndarray]


def gather(tables: Sequence[ResponseTable]) -> Whole:
    """One table of the prompts of all; its shape depends on their number alone."""
    tables = jax.device_get(list(tables))
    places = [np.any(table.roles == Role.CHOSEN, axis=1) for table in tables]
    real = [
        jax.tree.map(lambda x, where=where: x[where], table)
        for table, where in zip(tables, places, strict=True)
    ]
    return Whole(jax.tree.map(lambda *parts: np.concatenate(parts), *real), places)


def scatter(coupled: Coupled, places: Sequence[np.ndarray]) -> list[Coupled]:
    """Each table's rows of what was found for all prompts; 0 where it has no prompt."""
    slopes, losses = jax.device_get((coupled.slopes, coupled.losses))
    ends = np.cumsum([where.sum() for where in places])
    parts = []
    for where, end in zip(places, ends, strict=True):
        mine = slice(end - where.sum(), end)
        part = Coupled(
            np.zeros((len(where), slopes.shape[1]), np.float32),
            np.zeros(len(where), np.float32),
        )
        part.slopes[where] = slopes[mine]
        part.losses[where] = losses[mine]
        parts.append(part)
    return parts


def sum_up(
    programs: Programs,
    loss: Loss,
    state: TrainState,
    frozen: Frozen,
    batches: Sequence[PackedBatch],
) -> tuple[Accumulator, Any]:
    """Gradients and metrics of a step, and what its loss carries from now on.

    Args:
      programs: of the run.
      loss: that of the programs.
      state: before the update.
      frozen: base and reference.
      batches: the step's micro-batches, on the mesh.
    """
    total, params = programs.zero(), state.params
    if not loss.needs.couples_prompts:
        for batch in batches:
            total = programs.accumulate(total, params, frozen, batch)
        return total, state.loss_state
    whole = gather([programs.table(params, frozen, batch) for batch in batches])
    coupled = programs.couple(whole.table, state.loss_state)
    parts = scatter(coupled, whole.places)
    for batch, part in zip(batches, parts, strict=True):
        total = programs.pull(total, params, frozen, batch, part)
    return total, coupled.loss_state
