"""Attention by blocks of queries against a softmax written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epa_jax.models import query_blocks

SHAPES = {'one block': 40, 'blocks of 256': 600, 'eight blocks': 2100}


def written_out(q, k, v, mask_BTT):
    """All queries against all keys; heads are repeated, weights are kept."""
    groups = q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(x, groups, axis=2) for x in (k, v))
    scores = jnp.einsum('bqnh,bknh->bnqk', q, k) / q.shape[-1] ** 0.5
    scores = jnp.where(mask_BTT[:, None], scores, -jnp.inf)
    return jnp.einsum('bnqk,bknh->bqnh', jax.nn.softmax(scores, axis=-1), v)


def operands(length, dtype=jnp.float32):
    """Queries, keys, values, the gradient of the output; each looks at some before it."""
    keys = jax.random.split(jax.random.key(0), 5)
    arrays = [
        jax.random.normal(key, (1, length, n, 4), jnp.bfloat16).astype(dtype)
        for key, n in zip(keys[:4], (4, 2, 2, 4), strict=True)
    ]
    mask = jax.random.bernoulli(keys[4], 0.5, (1, length, length))
    return *arrays, jnp.tril(mask | jnp.eye(length, dtype=bool))


def passes(function, q, k, v, dout, mask):
    """Output and gradients."""
    out, pull = jax.vjp(lambda *qkv: function(*qkv, mask), q, k, v)
    return out, *pull(dout)


@pytest.mark.parametrize('length', SHAPES.values(), ids=SHAPES)
def test_blocks_equal_the_softmax_written_out(length):
    given = operands(length)
    found = jax.jit(passes, static_argnums=0)(query_blocks.causal, *given)
    expected = passes(written_out, *given)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-5)


def test_16_bits_are_near_and_stay_16_bits():
    found = passes(query_blocks.causal, *operands(40, jnp.bfloat16))
    for ours, theirs in zip(found, passes(written_out, *operands(40)), strict=True):
        assert ours.dtype == jnp.bfloat16
        error = jnp.linalg.norm(ours.astype(jnp.float32) - theirs)
        assert error < 0.01 * jnp.linalg.norm(theirs)


def test_who_sees_nothing_gets_something_finite_and_gives_no_gradient():
    q, k, v, dout, mask = operands(8)
    found = passes(query_blocks.causal, q, k, v, dout, mask.at[:, 3].set(False))
    assert all(np.isfinite(x).all() for x in found)
    assert not found[1][0, 3].any()
