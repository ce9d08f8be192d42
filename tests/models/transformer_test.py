"""The decoder: what may not change its output, and the shape of its parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from epa_jax.models import transformer
from epa_jax.models.transformer import Compute
from tests import tiny


def hidden(params, tokens, spec=tiny.SPEC, compute=None):
    tokens = jnp.asarray(tokens, jnp.int32)
    ones = jnp.ones_like(tokens)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    compute = compute or Compute()
    return transformer.hidden_states(
        params, tokens, positions, ones, 0 * ones, spec=spec, compute=compute
    )


def test_later_tokens_do_not_change_earlier_states():
    params, rng = tiny.params(), np.random.default_rng(0)
    tokens = rng.integers(0, 48, (2, 12))
    changed = tokens.copy()
    changed[:, 7:] = (changed[:, 7:] + 1) % 48
    before, after = hidden(params, tokens), hidden(params, changed)
    np.testing.assert_allclose(before[:, :7], after[:, :7], rtol=1e-5, atol=1e-6)
    assert np.abs(before[:, 7] - after[:, 7]).max() > 1e-2


def test_axes_name_every_dimension_of_every_parameter():
    spec = dataclasses.replace(
        tiny.SPEC, tie_embeddings=False, attention_bias=True, mlp_bias=True
    )
    shapes = transformer.abstract_params(spec, jnp.bfloat16)
    params = transformer.init_params(spec, jax.random.key(0), jnp.bfloat16)
    axes = transformer.logical_axes(spec)
    sizes = {
        'vocab': 48, 'embed': 16, 'norm': 16, 'layers': 3, 'heads': 4, 'kv_heads': 2,
        'head_dim': 8, 'mlp': 24,
    }  # fmt: skip
    assert jax.tree.structure(shapes) == jax.tree.structure(params)

    def check(leaf, param, names):
        assert leaf.shape == param.shape == tuple(sizes[n] for n in names)
        assert leaf.dtype == param.dtype == jnp.bfloat16

    jax.tree.map(check, shapes, params, axes)


def test_number_of_parameters_by_hand():
    attention = 16 * (4 + 2 + 2) * 8 + 4 * 8 * 16
    layer = attention + 3 * 16 * 24 + 2 * 16
    assert transformer.num_params(tiny.SPEC) == 48 * 16 + 3 * layer + 16


def test_same_key_same_parameters_and_unit_norms():
    one, two = (transformer.init_params(tiny.SPEC, jax.random.key(s)) for s in (7, 7))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    other = transformer.init_params(tiny.SPEC, jax.random.key(8))
    assert not np.array_equal(one['embed'], other['embed'])
    np.testing.assert_array_equal(one['layers']['attn_norm'], 1.0)
    assert 0.015 < float(jnp.std(one['embed'])) < 0.025
    # layers are drawn apart, not copies of one another
    assert not np.array_equal(one['layers']['q'][0], one['layers']['q'][1])
