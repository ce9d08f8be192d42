"""Devices as a named mesh, and where every array lives on it."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
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

    TPU slices, which are joined by a slower network, are told apart by the `data` axis
    alone. Where one axis spans a slice, its devices follow a ring of neighbours, along
    which XLA passes weights and gradients around.

    Raises:
      ConfigError: the axes do not multiply to the number of devices, or `data` is not a
        multiple of the number of slices.
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
    slices = _slices(devices)
    if sizes[0] % len(slices):
        raise ConfigError(
            f'mesh.data={sizes[0]}: expected a multiple of {len(slices)}, the number of '
            'TPU slices, so that parameters are not split between slices'
        )
    within = (sizes[0] // len(slices), sizes[1], sizes[2])
    placed = np.concatenate([_arrange(within, members) for members in slices])
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _slices(devices: Sequence[jax.Device]) -> list[list[jax.Device]]:
    """Devices by TPU slice; one list of all of them on other machines."""
    if devices[0].platform != 'tpu':
        return [list(devices)]
    slices: dict[int, list[jax.Device]] = {}
    for device in devices:
        slices.setdefault(getattr(device, 'slice_index', None) or 0, []).append(device)
    return [slices[index] for index in sorted(slices)]


def _arrange(sizes: tuple[int, ...], devices: list[jax.Device]) -> np.ndarray:
    """The devices of a slice as a mesh: a ring along one axis, else as JAX finds best."""
    by_place = {tuple(getattr(d, 'coords', ())): d for d in devices}
    shape = tuple(max(at) + 1 for at in zip(*by_place, strict=True))
    whole = len(by_place) == len(devices) == math.prod(shape)
    if devices[0].platform == 'tpu' and max(sizes) == len(devices) and whole:
        order = [by_place[place] for place in ring(shape)]
        return np.array(order, dtype=object).reshape(sizes)
    types = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(sizes, AXES, axis_types=types, devices=devices).devices


def ring(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """All places of a grid, each beside the next, the last beside the first.

    Closes only where the number of places is even and no more than one axis is needed to
    return; a line of three or more does not.
    """
    lines = sorted(range(len(shape)), key=lambda axis: shape[axis] % 2)
    first, rest = shape[lines[0]], tuple(shape[axis] for axis in lines[1:])
    across = _snake(rest)
    back, forth = across[0], across[1:]
    path = []
    for row in range(first):
        path += [(row, *at) for at in (forth if row % 2 == 0 else forth[::-1])]
    path += [(row, *back) for row in reversed(range(first))]
    where = [lines.index(axis) for axis in range(len(shape))]
    return [tuple(place[i] for i in where) for place in path]


def _snake(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """All places of a grid, each beside the next."""
    if not shape:
        return [()]
    inner = _snake(shape[1:])
    return [
        (row, *at)
        for row in range(shape[0])
        for at in (inner if row % 2 == 0 else inner[::-1])
    ]


def batch_devices(mesh: Mesh) -> int:
    """Devices over which rows are split."""
    return mesh.shape['data'] * mesh.shape['fsdp']


def ways(mesh: Mesh, axis: str) -> int:
    """Parts into which the mesh splits a logical axis."""
    return math.prod(mesh.shape[name] for name in RULES[axis] or ())


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


def constrain(x: jax.Array, axes: tuple[str | None, ...], mesh: Mesh) -> jax.Array:
    """Pins an activation with these logical axes to the mesh in a jitted program."""
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, partition(axes)))


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
        parts = ways(mesh, axis)
        if size % parts:
            raise ConfigError(
                f'mesh.{"*".join(RULES[axis] or ())}={parts} does not divide {axis}={size} '
                f'of parameter {path}; choose a divisor of {size}'
            )
    return NamedSharding(mesh, partition(axes))


def place_batch(mesh: Mesh, batch: Any) -> Any:
    """Puts host rows on the mesh; each process passes its own rows."""
    sharding = rows(mesh)
    if jax.process_count() == 1:  # all arrays in one transfer
        return jax.device_put(batch, sharding)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, x), batch
    )
