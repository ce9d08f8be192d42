"""The mesh and where parameters live."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from epa_jax import sharding
from epa_jax.config import ConfigError
from epa_jax.models import transformer
from epa_jax.models.transformer import Compute
from epa_jax.schema import MeshConfig
from tests import tiny


@pytest.mark.parametrize(
    ('sizes', 'expected'),
    [((1, -1, 1), (1, 8, 1)), ((2, -1, 2), (2, 2, 2)), ((-1, 1, 4), (2, 1, 4))],
)
def test_one_axis_takes_the_remaining_devices(sizes, expected):
    assert tuple(sharding.make_mesh(MeshConfig(*sizes)).shape.values()) == expected


@pytest.mark.parametrize('sizes', [(3, -1, 1), (2, 2, 1), (16, 1, 1)])
def test_a_mesh_that_does_not_fit_is_refused(sizes):
    with pytest.raises(ConfigError, match='does not fit 8 devices'):
        sharding.make_mesh(MeshConfig(*sizes))


def test_parameters_are_split_as_the_rules_say():
    mesh = sharding.make_mesh(MeshConfig(2, 2, 2))
    shapes = transformer.abstract_params(tiny.SPEC, jnp.float32)
    where = sharding.param_shardings(mesh, shapes, transformer.logical_axes(tiny.SPEC))
    assert where['embed'].spec == PartitionSpec('tensor', 'fsdp')
    assert where['layers']['q'].spec == PartitionSpec(None, 'fsdp', 'tensor', None)
    placed = jax.device_put(tiny.params(), where)
    shard = placed['layers']['gate'].addressable_shards[0].data
    assert shard.shape == (3, 16 // 2, 24 // 2)


def test_a_dimension_that_does_not_divide_is_named():
    mesh = sharding.make_mesh(MeshConfig(2, 1, 4))
    shapes = transformer.abstract_params(tiny.SPEC, jnp.float32)
    message = r"mesh.tensor=4 does not divide kv_heads=2 of parameter \['layers'\]\['k'\]"
    with pytest.raises(ConfigError, match=message):
        sharding.param_shardings(mesh, shapes, transformer.logical_axes(tiny.SPEC))


def test_axes_that_collide_or_do_not_exist_are_refused():
    with pytest.raises(ValueError, match='claim the same mesh axis'):
        sharding.partition(('heads', 'mlp'))
    with pytest.raises(ValueError, match="logical axis 'width'"):
        sharding.partition(('width',))


def test_rows_are_split_over_data_and_fsdp():
    mesh = sharding.make_mesh(MeshConfig(2, 2, 2))
    batch = np.arange(8 * 3).reshape(8, 3)
    placed = sharding.place_batch(mesh, batch)
    assert placed.addressable_shards[0].data.shape == (2, 3)
    np.testing.assert_array_equal(placed, batch)
    assert sharding.batch_devices(mesh) == 4


def test_a_program_is_traced_once_for_equal_meshes():
    traces = []

    @functools.partial(jax.jit, static_argnames='compute')
    def double(x, *, compute):
        traces.append(compute)
        return compute.constrain(2 * x, ('batch', None))

    for sizes in ((2, 2, 2), (2, 2, 2), (1, 8, 1)):
        compute = Compute(mesh=sharding.make_mesh(MeshConfig(*sizes)))
        found = double(np.ones((8, 3)), compute=compute)
        assert found.addressable_shards[0].data.shape == (8 // np.prod(sizes[:2]), 3)
    assert len(traces) == 2


@dataclasses.dataclass(frozen=True)
class Chip:
    """A TPU device as far as a mesh looks at it."""

    coords: tuple[int, ...]
    slice_index: int
    id: int
    platform: str = 'tpu'
    device_kind: str = 'TPU v5 lite'
    process_index: int = 0
    core_on_chip: int = 0


def slice_of(shape, index=0):
    places = np.ndindex(*shape)
    return [Chip(place, index, 1000 * index + n) for n, place in enumerate(places)]


@pytest.mark.parametrize('shape', [(4, 4, 1), (8, 8, 1), (2, 4, 4), (3, 4, 1), (2, 2, 1)])
def test_a_ring_visits_all_places_and_closes(shape):
    places = sharding.ring(shape)
    assert sorted(places) == list(np.ndindex(*shape))
    for one, other in zip(places, [*places[1:], places[0]], strict=True):
        assert sum(abs(a - b) for a, b in zip(one, other, strict=True)) == 1


@pytest.mark.parametrize('shape', [(5, 1, 1), (1, 1, 1), (3, 3, 1)])
def test_what_has_no_ring_still_visits_all_places(shape):
    assert sorted(sharding.ring(shape)) == list(np.ndindex(*shape))


def test_one_axis_follows_the_ring_of_a_slice():
    mesh = sharding.make_mesh(MeshConfig(), slice_of((4, 4, 1)))
    assert mesh.devices.shape == (1, 16, 1)
    assert [d.coords for d in mesh.devices.flat] == sharding.ring((4, 4, 1))


def test_slices_are_told_apart_by_the_data_axis():
    devices = slice_of((2, 4, 1), 1) + slice_of((2, 4, 1), 0)
    mesh = sharding.make_mesh(MeshConfig(2, -1, 1), devices)
    assert [[d.slice_index for d in row.flat] for row in mesh.devices] == [[0] * 8, [1] * 8]
    places = [[d.coords for d in row.flat] for row in mesh.devices]
    assert places[0] == places[1] == sharding.ring((2, 4, 1))
    with pytest.raises(ConfigError, match='expected a multiple of 2, the number of'):
        sharding.make_mesh(MeshConfig(1, -1, 1), devices)


def test_several_axes_are_left_to_jax():
    devices = slice_of((4, 4, 1))
    mesh = sharding.make_mesh(MeshConfig(1, 4, 4), devices)
    assert mesh.devices.shape == (1, 4, 4)
    assert set(mesh.devices.flat) == set(devices)
    assert math.prod(mesh.devices.shape) == 16
