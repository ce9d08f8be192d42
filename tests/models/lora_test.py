"""Adapters: equal to the merged model, trained alone, sharded like their matrices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from epa_jax import sharding
from epa_jax.models import lora as lora_lib
from epa_jax.models import transformer
from epa_jax.models.lora import Lora
from epa_jax.schema import MeshConfig
from tests import tiny

BIASED = dataclasses.replace(tiny.SPEC, attention_bias=True, mlp_bias=True)
SOME = Lora(2, 8.0, ('q', 'o', 'down'))


def adapters(spec, lora, seed=1):
    """Both matrices of every pair random, so that nothing vanishes."""
    shapes = lora_lib.abstract_adapters(spec, lora)
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    values = [
        0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, values)


def hidden(params, spec=tiny.SPEC, dtype='float32'):
    tokens = jax.random.randint(jax.random.key(5), (2, 9), 0, spec.vocab_size)
    ones = jnp.ones_like(tokens)
    places = jnp.cumsum(ones, axis=1) - 1
    compute = transformer.Compute(dtype)
    return transformer.hidden_states(
        params, tokens, places, ones, 0 * ones, spec=spec, compute=compute
    )


def by_hand(params, found, scale):
    """W + scale A B with numpy, one layer and one matrix after the other."""
    out = {name: np.array(leaf) for name, leaf in params['layers'].items()}
    for name in lora_lib.MATRICES:
        for layer in range(len(out[name])):
            if name + '_lora_a' not in found['layers']:
                continue
            down = np.asarray(found['layers'][name + '_lora_a'][layer])
            up = np.asarray(found['layers'][name + '_lora_b'][layer])
            out[name][layer] += scale * np.tensordot(down, up, axes=1)
    return params | {'layers': {name: jnp.asarray(leaf) for name, leaf in out.items()}}


@pytest.mark.parametrize('spec', [tiny.SPEC, BIASED], ids=['llama', 'biased'])
@pytest.mark.parametrize('lora', [SOME, Lora(3, 5.0)], ids=['some', 'all'])
def test_adapted_and_merged_models_are_the_sum_of_matrices(spec, lora):
    params, found = tiny.params(spec), adapters(spec, lora)
    attached = lora_lib.attach(params, found, lora.scale)
    expected = hidden(by_hand(params, found, lora.scale), spec)
    assert np.abs(expected - hidden(params, spec)).max() > 0.1
    np.testing.assert_allclose(hidden(attached, spec), expected, rtol=1e-4, atol=1e-4)
    merged = lora_lib.merge(attached)
    assert jax.tree.map(jnp.shape, merged) == jax.tree.map(jnp.shape, params)
    np.testing.assert_allclose(hidden(merged, spec), expected, rtol=1e-5, atol=1e-5)


def test_the_adapted_model_starts_as_its_base_and_moves_with_the_first_gradient():
    params = tiny.params()
    start = lora_lib.init_adapters(tiny.SPEC, SOME, jax.random.key(0))
    np.testing.assert_array_equal(
        hidden(lora_lib.attach(params, start, SOME.scale)), hidden(params)
    )
    down = start['layers']['o_lora_a']
    bound = (tiny.SPEC.n_heads * tiny.SPEC.head_dim) ** -0.5
    assert 0.8 * bound < float(jnp.abs(down).max()) <= bound
    assert float(jnp.abs(down.mean())) < 0.2 * bound

    def total(adapters):
        return jnp.sum(hidden(lora_lib.attach(params, adapters, SOME.scale)) ** 3)

    grads = jax.grad(total)(start)['layers']
    for name, grad in grads.items():
        assert bool(jnp.any(grad != 0)) == name.endswith('_lora_b'), name


def test_other_seeds_give_other_adapters():
    a, b, again = (
        lora_lib.init_adapters(tiny.SPEC, SOME, jax.random.key(s)) for s in (0, 1, 0)
    )
    for name, leaf in a['layers'].items():
        np.testing.assert_array_equal(leaf, again['layers'][name])
        assert bool(jnp.any(leaf != b['layers'][name])) == name.endswith('_lora_a')


def test_no_gradient_of_the_size_of_the_base_is_made():
    """Backward products are counted in the jaxpr: none has the shape of a base matrix."""
    params, found = tiny.params(), adapters(tiny.SPEC, SOME)

    def total(adapters):
        return jnp.sum(hidden(lora_lib.attach(params, adapters, SOME.scale)))

    made = str(jax.make_jaxpr(jax.grad(total))(found))
    whole = str(jax.make_jaxpr(jax.grad(lambda p: jnp.sum(hidden(p))))(params))
    shape = f'f32[{tiny.SPEC.d_ff},{tiny.SPEC.d_model}] = dot_general'
    transposed = f'f32[{tiny.SPEC.d_model},{tiny.SPEC.d_ff}] = dot_general'
    assert shape in whole or transposed in whole
    assert shape not in made
    assert transposed not in made


def test_scale_is_alpha_over_rank_or_its_root():
    assert Lora(16, 32.0).scale == 2.0
    assert Lora(16, 32.0, rank_stabilized=True).scale == 8.0


def test_merging_rounds_once():
    lora = Lora(2, 2.0, ('up',))
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), tiny.params())
    found = adapters(tiny.SPEC, lora)
    merged = lora_lib.merge(lora_lib.attach(params, found, lora.scale))
    exact = by_hand(jax.tree.map(lambda p: p.astype(jnp.float32), params), found, 1.0)
    np.testing.assert_array_equal(
        merged['layers']['up'], exact['layers']['up'].astype(jnp.bfloat16)
    )
    assert merged['layers']['up'].dtype == jnp.bfloat16
    assert merged['layers']['q'] is params['layers']['q']


def test_adapters_lie_where_their_matrices_do():
    mesh = sharding.make_mesh(MeshConfig(1, 2, 2), jax.devices()[:4])
    shapes = lora_lib.abstract_adapters(tiny.SPEC, SOME)
    axes = lora_lib.logical_axes(tiny.SPEC, SOME)
    places = sharding.param_shardings(mesh, shapes, axes)['layers']
    assert places['q_lora_a'].spec == PartitionSpec(None, 'fsdp', None)
    assert places['q_lora_b'].spec == PartitionSpec(None, None, 'tensor', None)
    assert places['o_lora_a'].spec == PartitionSpec(None, 'tensor', None, None)
    assert places['o_lora_b'].spec == PartitionSpec(None, None, 'fsdp')
    found = adapters(tiny.SPEC, SOME)
    params = tiny.params()
    where = sharding.param_shardings(mesh, params, transformer.logical_axes(tiny.SPEC))
    placed = lora_lib.attach(
        jax.device_put(params, where), jax.device_put(found, {'layers': places}), SOME.scale
    )
    expected = hidden(lora_lib.attach(params, found, SOME.scale))
    np.testing.assert_allclose(jax.jit(hidden)(placed), expected, rtol=1e-4, atol=1e-4)
