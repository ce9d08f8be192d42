"""Devices that hold all parameters add up by themselves, and meet once a step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from epa_jax import replicas, sharding
from epa_jax.frozen import NOTHING
from epa_jax.losses import make_loss
from epa_jax.models.mask import Tokens
from epa_jax.models.transformer import Compute
from epa_jax.schema import MeshConfig
from epa_jax.train_step import Accumulator, Objective, add
from tests import tiny
from tests.train_step_test import batches, one_step

LAYOUT = [[[0, 1], [2, 3]], [[4], [5, 6, 7]]]


def mesh_of(*shape):
    return sharding.make_mesh(MeshConfig(*shape), jax.devices()[: int(np.prod(shape))])


def objective(mesh=None):
    compute = Compute(mesh=mesh, logprob_chunk=8)
    return Objective(tiny.SPEC, compute, make_loss('epa', {}))


def text(function, *args):
    return function.lower(*args).compile().as_text()


@pytest.mark.parametrize(
    ('shape', 'apart'),
    [((1, 1, 1), False), ((2, 1, 1), True), ((2, 2, 1), False), ((2, 1, 2), False)],
)
def test_which_meshes_keep_sums_apart(shape, apart):
    assert replicas.apart(mesh_of(*shape)) == apart


@pytest.mark.parametrize(
    ('shape', 'crossing'), [((4, 1, 1), ['update']), ((1, 4, 1), ['accumulate', 'update'])]
)
def test_gradients_cross_devices_in_the_update_alone(shape, crossing):
    state, _, programs = one_step([[[0, 1], [2, 3], [4, 5], [6, 7]]], shape)
    batch = programs.place(batches([[[0, 1], [2, 3], [4, 5], [6, 7]]])[0])
    total = programs.zero()
    texts = {
        'accumulate': text(programs.accumulate, total, state.params, NOTHING, batch),
        'update': text(programs.update, state, total, state.loss_state),
    }
    assert [name for name in texts if 'all-reduce' in texts[name]] == crossing


def test_sums_of_a_stream_are_those_of_one_device():
    mesh, params, scale = mesh_of(2, 1, 1), tiny.params(), 0.5
    own = replicas.alone(objective(mesh), mesh)
    first, second = batches(LAYOUT)
    start = objective().gradients(params, first)

    def imitate(total, params, frozen, batch):
        return own.imitate(total, params, batch, scale, frozen)

    run = jax.jit(replicas.summing(imitate, mesh, counts=True))
    halves = jax.tree.map(lambda x: jnp.stack([x, 2 * x]) / 3, start)
    total, nll = run(halves, params, NOTHING, second)
    expected, expected_nll = objective().imitate(start, params, second, scale)
    assert float(nll.total) == pytest.approx(float(expected_nll.total), rel=1e-5)
    assert float(nll.weight) == float(expected_nll.weight)
    for ours, theirs in zip(
        jax.tree.leaves(replicas.joined(total)), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_each_device_sums_its_own_rows():
    mesh, params = mesh_of(2, 1, 1), tiny.params()
    own = replicas.alone(objective(mesh), mesh)

    def accumulate(total, params, frozen, batch):
        return add(total, own.gradients(params, batch, frozen))

    (batch,) = batches([[[0, 1, 2], [3]]])
    empty = jax.eval_shape(objective().gradients, params, batch)
    shapes = replicas.stacked(empty, mesh)
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    found = jax.jit(replicas.summing(accumulate, mesh))(zero, params, NOTHING, batch)
    assert isinstance(found, Accumulator)
    np.testing.assert_array_equal(found.prompts, [3, 1])
    for row in range(2):
        alone = jax.tree.map(lambda x, row=row: x[row : row + 1], batch)
        expected = objective().gradients(params, alone)
        ours = jax.tree.map(lambda x, row=row: x[row], found)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_further_arguments_are_split_as_asked():
    mesh = mesh_of(2, 1, 1)

    def function(sums, params, frozen, batch, rows, everywhere):
        del frozen
        return sums + params * batch.sum() + rows.sum() * everywhere

    split = (sharding.partition(('batch',)), PartitionSpec())
    batch, rows = jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])
    found = replicas.summing(function, mesh, *split)(
        jnp.zeros(2), 10.0, NOTHING, batch, rows, 7.0
    )
    np.testing.assert_array_equal(found, [10 + 21, 20 + 28])


def test_a_device_alone_knows_its_platform():
    mesh = mesh_of(2, 1, 1)
    assert replicas.alone(objective(mesh), mesh).compute.platform == 'cpu'
    tokens = Tokens(jnp.arange(128)[None], *(jnp.ones((1, 128), jnp.int32),) * 2)
    x = jnp.ones((1, 128, 2, 8))
    for platform, kernels in (('', False), ('cpu', False), ('tpu', True)):
        compute = dataclasses.replace(Compute(), platform=platform)
        program = jax.make_jaxpr(compute.attend(tokens, None))(x, x, x)
        assert ('pallas_call' in str(program)) == kernels
