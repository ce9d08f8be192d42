"""The step's functions compiled for one mesh, each once."""

import collections
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from epa_jax import replicas, sharding, train_step
from epa_jax.frozen import NOTHING, Frozen
from epa_jax.train_step import Accumulator, Coupled, Metrics, Objective
from epa_jax.types import (
    Array,
    PackedBatch,
    Params,
    ResponseTable,
    TrainState,
    WeightedSum,
)


@dataclasses.dataclass(frozen=True)
class Programs:
    """Compiled functions of the trained parameters and those `Frozen` beside them.

    Attributes:
      zero: () -> Accumulator of zeros.
      accumulate: (total, params, frozen, batch) -> total; the old total is donated.
      couple: (whole table, loss_state) -> Coupled, on every process.
      pull: (total, params, frozen, batch, coupled) -> total; likewise donated.
      imitate: (total, params, frozen, batch, scale) -> (total, nll); likewise donated.
      nll: (params, frozen, batch) -> WeightedSum.
      update: (state, total, loss_state) -> (state, metrics); the old state is donated.
      measure: (table, loss_state) -> metrics.
      table: (params, frozen, batch) -> ResponseTable, whole on every process.
      place: host rows of this process -> batch on the mesh.
      traces: how often each function was traced; more than 1 is a recompilation.
    """

    zero: Callable[[], Accumulator]
    accumulate: Callable[[Accumulator, Params, Frozen, PackedBatch], Accumulator]
    couple: Callable[[ResponseTable, Any], Coupled]
    pull: Callable[[Accumulator, Params, Frozen, PackedBatch, Coupled], Accumulator]
    imitate: Callable[
        [Accumulator, Params, Frozen, PackedBatch, float],
        tuple[Accumulator, WeightedSum],
    ]
    nll: Callable[[Params, Frozen, PackedBatch], WeightedSum]
    update: Callable[[TrainState, Accumulator, Any], tuple[TrainState, Metrics]]
    measure: Callable[[ResponseTable, Any], Metrics]
    table: Callable[[Params, Frozen, PackedBatch], ResponseTable]
    place: Callable[[PackedBatch], PackedBatch]
    traces: collections.Counter[str]


def abstract_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    loss_state: Any = (),
) -> TrainState:
    """Shapes and shardings of a train state, as `jax.ShapeDtypeStruct` leaves.

    Optimizer moments live where their parameter lives; factored moments and counters,
    which have other shapes, are replicated.

    Args:
      params: parameters, or `jax.ShapeDtypeStruct` leaves that carry a sharding.
      optimizer: what will update them.
      mesh: the mesh.
      loss_state: what the loss carries at the start.
    """
    everywhere = sharding.replicated(mesh)

    def struct(leaf: Any, where: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    def moment(leaf: Any, param: Any) -> jax.ShapeDtypeStruct:
        return struct(leaf, param.sharding if leaf.shape == param.shape else everywhere)

    params = jax.tree.map(lambda p: struct(p, p.sharding), params)
    state = jax.eval_shape(
        lambda p: train_step.init_state(p, optimizer, loss_state), params
    )
    opt_state = optax.tree_map_params(
        optimizer,
        moment,
        state.opt_state,
        params,
        transform_non_params=lambda leaf: struct(leaf, everywhere),
    )
    counters = jax.tree.map(lambda leaf: struct(leaf, everywhere), state)
    return dataclasses.replace(counters, params=params, opt_state=opt_state)


def shardings(abstract: Any) -> Any:
    """The sharding of every leaf."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def abstract_total(
    objective: Objective,
    state: TrainState,
    example: PackedBatch,
    mesh: Mesh,
    frozen: Frozen = NOTHING,
) -> Accumulator:
    """Shapes and shardings of a step's sums: gradients live where their parameter does.

    Devices that each hold all parameters keep sums of their own, see `replicas`.

    Args: as `build`.
    """
    everywhere = sharding.replicated(mesh)
    empty = jax.eval_shape(objective.gradients, state.params, example, frozen)
    if replicas.apart(mesh):
        return replicas.stacked(empty, mesh)

    def struct(leaf: Any, where: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    grads = jax.tree.map(struct, empty.grads, shardings(state.params))
    sums = jax.tree.map(lambda leaf: struct(leaf, everywhere), empty)
    return dataclasses.replace(sums, grads=grads)


def build(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    example: PackedBatch,
    mesh: Mesh,
    frozen: Frozen = NOTHING,
) -> Programs:
    """Programs for one kind of state and batch; each is compiled at its first use.

    Args:
      objective: model and loss.
      optimizer: that of the state.
      state: from `abstract_state`.
      example: any batch of the run, with `ref_logps` if its batches have them.
      mesh: the mesh.
      frozen: what the programs will be given, or its shapes.
    """
    traces: collections.Counter[str] = collections.Counter()
    everywhere = sharding.replicated(mesh)
    empty = abstract_total(objective, state, example, mesh, frozen)
    total = shardings(empty)
    apart = replicas.apart(mesh)
    own = replicas.alone(objective, mesh) if apart else objective

    def adding(function: Callable, *more: PartitionSpec, **how: bool) -> Callable:
        return replicas.summing(function, mesh, *more, **how) if apart else function

    def zero() -> Accumulator:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), empty)

    def accumulate(
        total: Accumulator, params: Params, frozen: Frozen, batch: PackedBatch
    ) -> Accumulator:
        traces['accumulate'] += 1
        return train_step.add(total, own.gradients(params, batch, frozen))

    def couple(table: ResponseTable, loss_state: Any) -> Coupled:
        traces['couple'] += 1
        return objective.couple(table, loss_state)

    def pull(
        total: Accumulator,
        params: Params,
        frozen: Frozen,
        batch: PackedBatch,
        coupled: Coupled,
    ) -> Accumulator:
        traces['pull'] += 1
        return train_step.add(total, own.pull(params, batch, coupled, frozen))

    def imitate(
        total: Accumulator,
        params: Params,
        frozen: Frozen,
        batch: PackedBatch,
        scale: Array,
    ) -> tuple[Accumulator, WeightedSum]:
        traces['imitate'] += 1
        return own.imitate(total, params, batch, scale, frozen)

    def nll(params: Params, frozen: Frozen, batch: PackedBatch) -> WeightedSum:
        traces['nll'] += 1
        return objective.nll(params, batch, frozen)

    def update(
        state: TrainState, total: Accumulator, loss_state: Any
    ) -> tuple[TrainState, Metrics]:
        traces['update'] += 1
        total = replicas.joined(total) if apart else total
        return train_step.update(state, total, optimizer, loss_state)

    def measure(table: ResponseTable, loss_state: Any) -> Metrics:
        traces['measure'] += 1
        return objective.measure(table, loss_state)

    def table(params: Params, frozen: Frozen, batch: PackedBatch) -> ResponseTable:
        traces['table'] += 1
        return objective.table(params, batch, frozen)

    return Programs(
        zero=jax.jit(zero, out_shardings=total),
        accumulate=jax.jit(adding(accumulate), out_shardings=total, donate_argnums=0),
        couple=jax.jit(couple, out_shardings=everywhere),
        pull=jax.jit(
            adding(pull, sharding.partition(('batch',))),
            out_shardings=total,
            donate_argnums=0,
        ),
        imitate=jax.jit(
            adding(imitate, PartitionSpec(), counts=True),
            out_shardings=(total, everywhere),
            donate_argnums=0,
        ),
        nll=jax.jit(nll, out_shardings=everywhere),
        update=jax.jit(
            update, out_shardings=(shardings(state), everywhere), donate_argnums=0
        ),
        measure=jax.jit(measure, out_shardings=everywhere),
        table=jax.jit(table, out_shardings=everywhere),
        place=functools.partial(sharding.place_batch, mesh),
        traces=traces,
    )
