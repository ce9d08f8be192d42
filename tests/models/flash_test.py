"""The kernels, interpreted, against attention through a dense mask: values, gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epa_jax.models import attention, flash, mask
from tests.models.mask_test import packed

CASES = {
    'a window, rows that no block divides': (jnp.float32, 60, 8, 3),
    '16 bits': (jnp.bfloat16, 48, 16, None),
}


def inputs(seed, length, dtype=jnp.float32):
    """Queries, keys, values and the gradient of the output; two heads share a key head."""
    keys = jax.random.split(jax.random.key(seed), 4)
    return [
        2 * jax.random.normal(key, (2, length, n, 8), jnp.float32).astype(dtype)
        for key, n in zip(keys, (4, 2, 2, 4), strict=True)
    ]


@functools.cache
def compiled(length, block, window):
    """Output and gradients of q, k, v by the kernels and by XLA."""

    def kernel(q, k, v, tokens):
        blocks = flash.plan_blocks(tokens, window, block)
        more = {'block': block, 'sliding_window': window, 'interpret': True}
        return flash.attend(q, k, v, blocks, **more)

    def dense(q, k, v, tokens):
        return attention.attend(q, k, v, tokens, sliding_window=window, backend='xla')

    def run(attend, tokens, dout, *qkv):
        real = (tokens.segments != 0)[:, :, None, None]
        out, pull = jax.vjp(lambda *a: attend(*a, tokens), *qkv)
        return out, *pull(jnp.where(real, dout, 0))

    return [jax.jit(functools.partial(run, f)) for f in (kernel, dense)]


@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_values_and_gradients_equal_those_of_dense_attention(case):
    dtype, length, block, window = case
    kernel, dense = compiled(length, block, window)
    for seed in range(3):
        tokens = packed(seed, length)[1]
        q, k, v, dout = inputs(seed, length, dtype)
        found = kernel(tokens, dout, q, k, v)
        exact = dense(tokens, *(x.astype(jnp.float32) for x in (dout, q, k, v)))
        real = (tokens.segments != 0)[:, :, None, None]
        for ours, theirs in zip(found, exact, strict=True):
            assert ours.dtype == dtype
            assert np.all(np.isfinite(ours))
            scale = float(jnp.max(jnp.abs(theirs * real)))
            error = 1e-5 if dtype == jnp.float32 else 2e-2  # bf16 has 8 bits
            difference = jnp.where(real, ours.astype(jnp.float32) - theirs, 0)
            np.testing.assert_allclose(difference, 0, atol=error * scale)


def test_padding_gets_no_gradient_and_an_empty_row_is_finite():
    tokens = packed(0, 60)[1]
    tokens = jax.tree.map(lambda x: x.at[1].set(0), tokens)
    q, k, v, dout = inputs(0, 60)
    out, *gradients = compiled(60, 8, 3)[0](tokens, dout, q, k, v)
    assert np.all(np.isfinite(out))
    padding = np.asarray(tokens.segments == 0)
    assert padding.sum() > 60
    for gradient in gradients:
        np.testing.assert_array_equal(np.asarray(gradient)[padding], 0)


def test_blocks_of_other_responses_are_not_touched():
    """One response holds NaN: a weight of zero would not keep it from the other."""
    tokens = mask.Tokens(
        positions=jnp.array([[*range(40), *range(24, 44)]] * 2),
        segments=jnp.ones((2, 60), jnp.int32),
        branches=jnp.array([[0] * 24 + [1] * 16 + [2] * 20] * 2),
    )
    q, k, v, dout = inputs(0, 60)
    kernel = compiled(60, 8, 3)[0]
    clean = kernel(tokens, dout, q, k, v)[0]
    k, v = (x.at[:, 24:40].set(np.nan) for x in (k, v))
    spoilt = kernel(tokens, dout, q, k, v)[0]
    others = np.r_[0:24, 40:60]
    np.testing.assert_array_equal(clean[:, others], spoilt[:, others])
    assert np.all(np.isnan(spoilt[:, 24:40]))


@pytest.mark.parametrize(
    ('length', 'block'),
    [(1, 128), (128, 128), (640, 384), (1024, 512), (1152, 384), (2048, 512), (2100, 512)],
)
def test_blocks_are_multiples_of_128_that_leave_little_room(length, block):
    assert flash.block_size(length) == block
