"""Devices as a named mesh, and where every array lives on it."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from epa_jax.config import ConfigError
from epa_jax.schema import MeshConfig
from epa_jax.types import Params

AXES = ('data', 'fsdp', 'tensor')

# logical axis -> mesh axes; None is not split
RULES: dict[str, tuple[str, ...] | None] = {
    'batch': ('data', 'fsdp'),
    'embed': ('fsdp',),
    'heads': ('tensor',),
    'kv_heads': ('tensor',),
    'mlp': ('tensor',),
    'vocab': ('tensor',),
    'layers': None,
    'head_dim': None,
    'rank': None,
    'norm': None,
}


def make_mesh(cfg: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Mesh of `data` x `fsdp` x `tensor` devices; one axis of -1 takes what remains.

    Raises:
      ConfigError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [cfg.data, cfg.fsdp, cfg.tensor]
    known = math.prod(s for s in sizes if s != -1)
    sizes = [len(devices) // known if s == -1 else s for s in sizes]
    if math.prod(sizes) != len(devices):
        raise ConfigError(
            f'mesh: data={cfg.data}, fsdp={cfg.fsdp}, tensor={cfg.tensor} does not fit '
            f'{len(devices)} devices; the product must be that number (-1 fills one)'
        )
    types = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(tuple(sizes), AXES, axis_types=types, devices=devices)


def batch_devices(mesh: Mesh) -> int:
    """Devices over which rows are split."""
    return mesh.shape['data'] * mesh.shape['fsdp']


def partition(axes: tuple[str | None, ...]) -> PartitionSpec:
    """Mesh axes of an array with these logical axes.

    Raises:
      ValueError: an unknown logical axis, or two axes that claim one mesh axis.
    """
    out: list[tuple[str, ...] | None] = []
    for axis in axes:
        if axis is not None and axis not in RULES:
            raise ValueError(f'logical axis {axis!r}: expected one of {sorted(RULES)}')
        out.append(None if axis is None else RULES[axis])
    used = [name for names in out if names for name in names]
    if len(used) != len(set(used)):
        raise ValueError(f'logical axes {axes}: two of them claim the same mesh axis')
    return PartitionSpec(*out)


@dataclasses.dataclass(frozen=True)
class _Constrainer:
    mesh: Mesh

    def __call__(self, x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
        where = NamedSharding(self.mesh, partition(axes))
        return jax.lax.with_sharding_constraint(x, where)


def constrainer(mesh: Mesh) -> Callable[[jax.Array, tuple[str | None, ...]], jax.Array]:
    """Function that pins an activation to the mesh inside a jitted program.

    Those of equal meshes are equal: a program that takes one as a static argument is
    compiled once for all models of a mesh.
    """
    return _Constrainer(mesh)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def rows(mesh: Mesh) -> NamedSharding:
    """The first axis is split over the batch devices."""
    return NamedSharding(mesh, partition(('batch',)))


def param_shardings(mesh: Mesh, abstract: Params, axes: Params) -> Params:
    """Sharding of every parameter.

    Args:
      mesh: from `make_mesh`.
      abstract: tree of shapes.
      axes: logical axes in the structure of `abstract`, as tuples of names.

    Raises:
      ConfigError: a dimension that its mesh axes do not divide.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf, names: _leaf_sharding(
            mesh, jax.tree_util.keystr(path), leaf.shape, names
        ),
        abstract,
        axes,
    )


def _leaf_sharding(
    mesh: Mesh, path: str, shape: tuple[int, ...], axes: tuple[str, ...]
) -> NamedSharding:
    for axis, size in zip(axes, shape, strict=True):
        names = RULES[axis] or ()
        ways = math.prod(mesh.shape[name] for name in names)
        if size % ways:
            raise ConfigError(
                f'mesh.{"*".join(names)}={ways} does not divide {axis}={size} of parameter '
                f'{path}; choose a divisor of {size}'
            )
    return NamedSharding(mesh, partition(axes))


def place_batch(mesh: Mesh, batch: Any) -> Any:
    """Puts host rows on the mesh; each process passes its own rows."""
    sharding = rows(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, x), batch
    )
