"""The tables of a step's micro-batches as one, and back, for losses that couple prompts."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from epa_jax.train_step import Coupled
from epa_jax.types import ResponseTable, Role


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
