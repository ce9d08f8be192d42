"""The pure functions of one optimiser step.

A step sums gradients over as many micro-batches as its prompts fill, then updates once:

    total = gradients(params, first) + gradients(params, second) + ...
    state, metrics = update(state, total)

Sums are divided once by the number of prompts, so the result does not depend on how the
prompts were packed into rows, micro-batches or devices.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from epa_jax.logprobs import response_table
from epa_jax.losses import Loss
from epa_jax.metrics import preference_metrics
from epa_jax.models.spec import ModelSpec
from epa_jax.models.transformer import Compute
from epa_jax.types import (
    Array,
    PackedBatch,
    Params,
    ResponseTable,
    Role,
    TrainState,
    WeightedSum,
)

Metrics = dict[str, WeightedSum]


@flax.struct.dataclass
class Accumulator:
    """Sums over the micro-batches of a step.

    Attributes:
      grads: float32, sum over prompts of the gradient of their loss.
      prompts: float32 [], prompts summed.
      metrics: see `metrics.preference_metrics`.
    """

    grads: Params
    prompts: Array
    metrics: Any


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is minimised: a model, a loss on its response table, and its reference.

    Attributes:
      spec: architecture.
      compute: how the forward pass computes.
      loss: from `losses.make_loss`.
    """

    spec: ModelSpec
    compute: Compute
    loss: Loss

    def table(
        self, params: Params, batch: PackedBatch, ref_params: Params | None
    ) -> ResponseTable:
        """Response table, with `ref_logps` computed here when `ref_params` is given."""
        table = response_table(params, batch, spec=self.spec, compute=self.compute)
        if ref_params is None:
            return table
        ref = response_table(ref_params, batch, spec=self.spec, compute=self.compute)
        return dataclasses.replace(table, ref_logps=jax.lax.stop_gradient(ref.logps))

    def measure(
        self, params: Params, batch: PackedBatch, ref_params: Params | None = None
    ) -> Metrics:
        """Metrics of a micro-batch, without gradients."""
        return self._sums(params, batch, ref_params)[1][1]

    def gradients(
        self, params: Params, batch: PackedBatch, ref_params: Params | None = None
    ) -> Accumulator:
        """Sums of gradients and metrics over the prompts of a micro-batch."""
        total = jax.grad(self._sums, has_aux=True)
        grads, (prompts, metrics) = total(params, batch, ref_params)
        grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
        return Accumulator(grads, prompts, metrics)

    def _sums(
        self, params: Params, batch: PackedBatch, ref_params: Params | None
    ) -> tuple[jax.Array, tuple[jax.Array, Metrics]]:
        table = self.table(params, batch, ref_params)
        loss_N = self.loss.fn(table)
        real_N = jnp.any(table.roles == Role.CHOSEN, axis=1)
        metrics = preference_metrics(table, loss_N, self.loss.beta)
        return jnp.sum(loss_N), (jnp.sum(real_N, dtype=jnp.float32), metrics)


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """State before the first update."""
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        params=params,
        opt_state=optimizer.init(params),
        skipped=zero,
        skipped_in_a_row=zero,
    )


def add(total: Accumulator, part: Accumulator) -> Accumulator:
    """Sum of two accumulators, of equal structure."""
    return jax.tree.map(jnp.add, total, part)


def update(
    state: TrainState, total: Accumulator, optimizer: optax.GradientTransformation
) -> tuple[TrainState, Metrics]:
    """One optimiser update from the sums of all micro-batches.

    The gradient is that of the mean loss over prompts. When it or the loss is not
    finite the parameters and the optimizer state stay as they were and the skip is
    counted.

    Returns:
      The new state, and the step's metrics with `grad_norm` and `skipped_updates`.
    """
    grads = jax.tree.map(lambda g: g / total.prompts, total.grads)
    norm = optax.tree.norm(grads)
    good = jnp.isfinite(norm) & jnp.isfinite(total.metrics['loss'].total)

    def apply(state: TrainState) -> tuple[Params, Any]:
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        return optax.apply_updates(state.params, updates), opt_state

    def skip(state: TrainState) -> tuple[Params, Any]:
        return state.params, state.opt_state

    params, opt_state = jax.lax.cond(good, apply, skip, state)
    bad = 1 - good.astype(jnp.int32)
    state = TrainState(
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        skipped=state.skipped + bad,
        skipped_in_a_row=jnp.where(good, 0, state.skipped_in_a_row + 1),
    )
    one = jnp.ones(())
    extra = {
        'grad_norm': WeightedSum(norm, one),
        'skipped_updates': WeightedSum(state.skipped.astype(jnp.float32), one),
        'skipped_in_a_row': WeightedSum(state.skipped_in_a_row.astype(jnp.float32), one),
    }
    return state, total.metrics | extra
