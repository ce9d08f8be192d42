"""The pure functions of one optimiser step.

A step sums gradients over as many micro-batches as its prompts fill, then updates once:

    total = gradients(params, first) + gradients(params, second) + ...
    state, metrics = update(state, total)

Sums are divided once by the number of prompts, so the result does not depend on how the
prompts were packed into rows, micro-batches or devices. A loss that couples prompts is
first given the table of the whole step, which needs one more forward pass:

    coupled = couple(table of all micro-batches, loss_state)
    total = pull(params, first, coupled) + pull(params, second, coupled) + ...
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from epa_jax.frozen import NOTHING, Frozen
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


@flax.struct.dataclass
class Coupled:
    """A loss that couples prompts, taken apart.

    Attributes:
      slopes: float32 [N, K], derivative of the sum of losses by each log-prob.
      losses: float32 [N], loss of each prompt.
      loss_state: what the loss carries to the next step.
    """

    slopes: Array
    losses: Array
    loss_state: Any = ()


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
        self, params: Params, batch: PackedBatch, frozen: Frozen = NOTHING
    ) -> ResponseTable:
        """Response table; with `ref_logps` computed here if `frozen` has a reference."""
        table = self.policy_table(frozen.policy(params), batch)
        ref_params = frozen.reference_params()
        if ref_params is None:
            return table
        ref_logps = jax.lax.stop_gradient(self.policy_table(ref_params, batch).logps)
        return dataclasses.replace(table, ref_logps=ref_logps)

    def policy_table(self, params: Params, batch: PackedBatch) -> ResponseTable:
        """Response table of a whole model."""
        return response_table(
            params,
            batch,
            spec=self.spec,
            compute=self.compute,
            tail_weight=self.loss.tail_weight,
            collision=self.loss.needs_collision,
        )

    def measure(self, table: ResponseTable, loss_state: Any = ()) -> Metrics:
        """Metrics of a table."""
        return self._metrics(table, self.loss.fn(table, loss_state))

    def gradients(
        self, params: Params, batch: PackedBatch, frozen: Frozen = NOTHING
    ) -> Accumulator:
        """Sums of gradients and metrics over the prompts of a micro-batch.

        For a loss of each prompt by itself; otherwise see `couple` and `pull`.
        """

        def total(params: Params) -> tuple[jax.Array, tuple[ResponseTable, jax.Array]]:
            table = self.table(params, batch, frozen)
            loss_N = self.loss.fn(table)
            return jnp.sum(loss_N), (table, loss_N)

        grads, (table, loss_N) = jax.grad(total, has_aux=True)(params)
        return self._accumulator(grads, table, loss_N)

    def couple(self, table: ResponseTable, loss_state: Any) -> Coupled:
        """The loss of a whole step, where prompts depend on one another.

        Args:
          table: of every prompt of the step.
          loss_state: what the loss carries from the steps before.
        """
        loss_state = jax.tree.map(jnp.add, loss_state, self.loss.carry(table))

        def total(logps: jax.Array) -> tuple[jax.Array, jax.Array]:
            loss_N = self.loss.fn(dataclasses.replace(table, logps=logps), loss_state)
            return jnp.sum(loss_N), loss_N

        slopes, loss_N = jax.grad(total, has_aux=True)(jnp.asarray(table.logps))
        return Coupled(slopes, loss_N, loss_state)

    def pull(
        self,
        params: Params,
        batch: PackedBatch,
        coupled: Coupled,
        frozen: Frozen = NOTHING,
    ) -> Accumulator:
        """`gradients` where the derivatives by log-probs are known from `couple`.

        Args:
          params: the parameters that the coupled table was made with.
          batch: one micro-batch of the step.
          coupled: its rows of what `couple` returned.
          frozen: base and reference.
        """

        def total(params: Params) -> tuple[jax.Array, ResponseTable]:
            table = self.table(params, batch, frozen)
            return jnp.sum(coupled.slopes * table.logps), table

        grads, table = jax.grad(total, has_aux=True)(params)
        return self._accumulator(grads, table, coupled.losses)

    def nll(
        self, params: Params, batch: PackedBatch, frozen: Frozen = NOTHING
    ) -> WeightedSum:
        """Negative log-likelihood of the responses, nats, and how many tokens they have."""
        policy = frozen.policy(params)
        table = response_table(policy, batch, spec=self.spec, compute=self.compute)
        tokens = jnp.sum(table.lengths, dtype=jnp.float32)
        return WeightedSum(-jnp.sum(table.logps), tokens)

    def imitate(
        self,
        total: Accumulator,
        params: Params,
        batch: PackedBatch,
        scale: Array,
        frozen: Frozen = NOTHING,
    ) -> tuple[Accumulator, WeightedSum]:
        """Adds `scale` times the gradient of `nll`; the prompts of the sums stay."""

        def value(params: Params) -> tuple[jax.Array, WeightedSum]:
            nll = self.nll(params, batch, frozen)
            return scale * nll.total, nll

        grads, nll = jax.grad(value, has_aux=True)(params)
        grads = jax.tree.map(lambda a, g: a + g.astype(jnp.float32), total.grads, grads)
        return dataclasses.replace(total, grads=grads), nll

    def _accumulator(
        self, grads: Params, table: ResponseTable, loss_N: jax.Array
    ) -> Accumulator:
        grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
        real_N = jnp.any(table.roles == Role.CHOSEN, axis=1)
        prompts = jnp.sum(real_N, dtype=jnp.float32)
        return Accumulator(grads, prompts, self._metrics(table, loss_N))

    def _metrics(self, table: ResponseTable, loss_N: jax.Array) -> Metrics:
        loss = self.loss
        return preference_metrics(table, loss_N, loss.beta, loss.needs.per_token)


def init_state(
    params: Params, optimizer: optax.GradientTransformation, loss_state: Any = ()
) -> TrainState:
    """State before the first update; `loss_state` from `Loss.nothing_carried`."""
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        params=params,
        opt_state=optimizer.init(params),
        skipped=zero,
        skipped_in_a_row=zero,
        loss_state=loss_state,
    )


def add(total: Accumulator, part: Accumulator) -> Accumulator:
    """Sum of two accumulators, of equal structure."""
    return jax.tree.map(jnp.add, total, part)


def update(
    state: TrainState,
    total: Accumulator,
    optimizer: optax.GradientTransformation,
    loss_state: Any = (),
) -> tuple[TrainState, Metrics]:
    """One optimiser update from the sums of all micro-batches.

    The gradient is that of the mean loss over prompts. When it or the loss is not
    finite the parameters, the optimizer state and the loss's own stay as they were and
    the skip is counted.

    Args:
      state: before the update.
      total: sums over the step.
      optimizer: that of the state.
      loss_state: what the loss carries from now on.

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
        loss_state=jax.tree.map(
            lambda new, old: jnp.where(good, new, old), loss_state, state.loss_state
        ),
    )
    one = jnp.ones(())
    extra = {
        'grad_norm': WeightedSum(norm, one),
        'skipped_updates': WeightedSum(state.skipped.astype(jnp.float32), one),
        'skipped_in_a_row': WeightedSum(state.skipped_in_a_row.astype(jnp.float32), one),
    }
    return state, total.metrics | extra
