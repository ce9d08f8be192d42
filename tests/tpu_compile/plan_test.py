"""Plans for TPUs that are not here: needs libtpu, no TPU."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from epa_jax import plan as plan_lib
from epa_jax import sharding
from epa_jax.models.transformer import num_params
from epa_jax.planning import abstract, compiled
from epa_jax.planning.topology import devices, parse
from epa_jax.schema import MeshConfig
from tests import planned, tiny

pytest.importorskip('libtpu', reason='needs libtpu: make tpu_compile')
pytestmark = pytest.mark.tpu_compile
SPEC = dataclasses.replace(tiny.SPEC, d_model=128, d_ff=256, head_dim=32, vocab_size=512)


@pytest.mark.parametrize('name', ['v5e-4', 'v5p-8', 'v4-8', 'v6e-4', '2xv5e-4'])
def test_a_tiny_run_is_planned(name, tmp_path):
    topology = parse(name)
    run = planned.config(
        tmp_path, SPEC, model__compute_dtype='bfloat16', mesh__data=topology.slices
    )
    plan = plan_lib.plan(run, topology)
    memory = plan['memory']
    assert memory['fits'] is True
    assert memory['parameters'] >= 4 * num_params(SPEC) / topology.chips
    assert memory['programs']['update']['arguments'] >= 4 * memory['parameters']
    assert {c['kind'] for c in plan['collectives']} & {'all-gather', 'collective-permute'}
    assert any(c['between_slices'] for c in plan['collectives']) == (topology.slices > 1)


def test_what_is_too_large_is_told_with_its_size():
    (device,) = devices(parse('v5e-1'))
    mesh = sharding.make_mesh(MeshConfig(), [device])
    where = sharding.replicated(mesh)
    x = jax.ShapeDtypeStruct((20, 2**30), jnp.float32, sharding=where)
    call = abstract.Call('double', jax.jit(lambda x: 2 * x), (x,), 1, 7)
    made = compiled.compile_call(call, 1, 1)
    assert made.memory is None
    assert made.needed >= 80 * 2**30


@pytest.mark.parametrize('name', ['v5e-64', 'v5p-64', '2xv5e-16'])
def test_neighbours_on_the_mesh_are_neighbours_in_the_slice(name):
    topology = parse(name)
    cfg = MeshConfig(topology.slices, -1, 1)
    mesh = sharding.make_mesh(cfg, devices(topology)).devices
    for row in mesh.reshape(topology.slices, -1):
        assert len({getattr(device, 'slice_index', 0) for device in row}) == 1
        for one, other in zip(row, [*row[1:], row[0]], strict=True):
            assert (
                sum(abs(a - b) for a, b in zip(one.coords, other.coords, strict=True)) == 1
            )
