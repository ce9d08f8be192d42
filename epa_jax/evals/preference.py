"""Preference metrics on held-out examples."""

from collections.abc import Iterable

import jax

from epa_jax.coupling import gather
from epa_jax.frozen import Frozen
from epa_jax.metrics import finalise
from epa_jax.programs import Programs
from epa_jax.types import PackedBatch, ResponseTable, TrainState


def evaluate(
    programs: Programs,
    state: TrainState,
    frozen: Frozen,
    batches: Iterable[PackedBatch],
) -> dict[str, float]:
    """Means over all prompts of `batches`, under the names of training with 'eval/'.

    All held-out prompts make one table, so that a loss that couples prompts does not
    depend on how they were packed. A batch is asked for when all but the newest of those
    before it are computed, so whoever makes them may stop in between.

    Args:
      programs: of the run.
      state: the policy, and what its loss carries.
      frozen: base and reference.
      batches: one pass over the held-out rows.

    Raises:
      ValueError: no batches.
    """
    tables: list[ResponseTable] = []
    for batch in batches:
        tables.append(programs.table(state.params, frozen, programs.place(batch)))
        jax.block_until_ready(tables[-2:-1])
    if not tables:
        raise ValueError('evaluation without examples: set data.eval or data.eval_examples')
    metrics = finalise(programs.measure(gather(tables).table, state.loss_state))
    return {f'eval/{name}': value for name, value in metrics.items()}
