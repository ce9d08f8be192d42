"""Sums that each device keeps for itself, where each holds all parameters.

On a mesh of `data` alone a step's gradients cross devices once, when it updates, instead
of once for every layer of every micro-batch. Such sums have one more axis in front, of the
devices. Where parameters are split over devices there is no room for whole gradients on
each, and they are reduced to the shards at once.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from epa_jax import sharding
from epa_jax.train_step import Objective


def apart(mesh: Mesh) -> bool:
    """Whether each of several devices holds all parameters, and keeps sums for itself."""
    return mesh.size > 1 and mesh.shape['data'] == mesh.size


def alone(objective: Objective, mesh: Mesh) -> Objective:
    """The objective as one device of the mesh computes it on its own rows."""
    platform = mesh.devices.flat[0].platform
    compute = dataclasses.replace(objective.compute, mesh=None, platform=platform)
    return dataclasses.replace(objective, compute=compute)


def stacked(abstract: Any, mesh: Mesh) -> Any:
    """Shapes and shardings of sums, with an axis of D devices in front.

    Args:
      abstract: of one device, leaves [...]; they become [D, ...], split over the first.
      mesh: one that keeps devices `apart`.
    """
    where = sharding.rows(mesh)

    def struct(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((mesh.size, *leaf.shape), leaf.dtype, sharding=where)

    return jax.tree.map(struct, abstract)


def summing(
    function: Callable, mesh: Mesh, *more: PartitionSpec, counts: bool = False
) -> Callable:
    """A function that adds to sums, run by each device on its own.

    Args:
      function: (sums, params, frozen, batch, ...) -> sums, of what one device has.
      mesh: one that keeps devices `apart`.
      *more: how further arguments are split; the batch is by its rows.
      counts: the function returns (sums, counts), of which the counts are added up over
        the devices here.

    Returns:
      The function of `stacked` sums and the whole batch.
    """
    rows, everywhere = sharding.partition(('batch',)), PartitionSpec()

    def own(sums: Any, *args: Any) -> Any:
        found = function(jax.tree.map(lambda x: x[0], sums), *args)
        sums, *rest = found if counts else (found,)
        out = jax.tree.map(lambda x: x[None], sums)
        return (out, *jax.lax.psum(rest, sharding.AXES)) if counts else out

    return jax.shard_map(
        own,
        mesh=mesh,
        in_specs=(rows, everywhere, everywhere, rows, *more),
        out_specs=(rows, everywhere) if counts else rows,
        check_vma=False,  # else gradients of the parameters would be added up in it
    )


def joined(sums: Any) -> Any:
    """`stacked` sums, leaves [D, ...], added up over the devices: [...]."""
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)
