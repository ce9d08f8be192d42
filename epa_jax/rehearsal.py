"""A step of nothing with every shape of rows, before the first that trains.

Where rows have several lengths, the longest may first come hours into a run. Whatever
does not fit in memory had better be found out at the start.
"""

import jax
import numpy as np

from epa_jax.data import packing
from epa_jax.data.mixture import Mixture
from epa_jax.data.packing import Layout
from epa_jax.frozen import Frozen
from epa_jax.losses import Loss
from epa_jax.programs import Programs
from epa_jax.train_step import Coupled
from epa_jax.types import PackedBatch, TrainState


def rehearse(
    programs: Programs, loss: Loss, state: TrainState, frozen: Frozen, data: Mixture
) -> None:
    """Compiles and runs what sums up a step, once for every shape; waits for it.

    Nothing is done where all rows have one shape, as the first step is soon enough.

    Args:
      programs: of the run.
      loss: that of the programs.
      state: the train state; it stays as it is.
      frozen: base and reference.
      data: what the steps will be made of.
    """
    texts = [*data.streams.values()][:1]  # all streams share their shapes
    if all(len(pipeline.layouts) == 1 for pipeline in (data.preference, *texts)):
        return
    params, total = state.params, programs.zero()
    with_reference = data.preference.ref_logps is not None
    for layout in data.preference.layouts:
        batch = programs.place(_empty(layout, with_reference))
        if loss.needs.couples_prompts:
            programs.table(params, frozen, batch)
            total = programs.pull(total, params, frozen, batch, _nothing(layout))
        else:
            total = programs.accumulate(total, params, frozen, batch)
    for layout in texts[0].layouts if texts else ():
        batch = programs.place(_empty(layout, with_reference=False))
        total, _ = programs.imitate(total, params, frozen, batch, 0.0)
    jax.block_until_ready(total)


def _empty(layout: Layout, with_reference: bool) -> PackedBatch:
    own = packing.own_rows(layout)
    return packing.empty(own.stop - own.start, layout, with_reference=with_reference)


def _nothing(layout: Layout) -> Coupled:
    """What `coupling.scatter` gives a micro-batch without prompts."""
    prompts = layout.rows * layout.groups_per_row
    slopes = np.zeros((prompts, layout.responses), np.float32)
    return Coupled(slopes, np.zeros(prompts, np.float32))
