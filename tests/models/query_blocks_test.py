"""Spans of keys hold all that queries see, and give what all keys give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epa_jax import sharding
from epa_jax.models import attention, query_blocks
from epa_jax.models.mask import Tokens, visible
from epa_jax.schema import MeshConfig

LENGTH = 320


def rows(*seeds):
    """A row for each seed, cut at random into prompts with two responses, and padding."""
    arrays = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        starts = rng.random(LENGTH) < rng.choice([0.0, 0.01, 0.05])
        starts[0], starts[-20] = True, True
        segments = np.cumsum(starts)
        segments[-20:] = 0
        since = np.arange(LENGTH) - np.maximum.accumulate(np.arange(LENGTH) * starts)
        arrays.append((since, segments, np.clip(since // 20, 0, 2)))
    return Tokens(*(jnp.array(x, jnp.int32) for x in zip(*arrays, strict=True)))


def operands(tokens):
    """Queries, keys, values and the gradient of the output, exact in 16 bits."""
    keys = jax.random.split(jax.random.key(0), 4)
    return [
        jax.random.normal(key, (len(tokens.segments), LENGTH, n, 8), jnp.bfloat16)
        for key, n in zip(keys, (4, 2, 2, 4), strict=True)
    ]


def passes(backend, tokens, dtype=jnp.float32, **how):
    """Output and gradients; padding counts for nothing."""
    real = (tokens.segments != 0)[:, :, None, None]

    @jax.jit
    def run(q, k, v, dout):
        def attend(*qkv):
            return attention.attend(*qkv, tokens, backend=backend, **how)

        out, pull = jax.vjp(attend, q, k, v)
        return jnp.where(real, out, 0), *pull(jnp.where(real, dout, 0).astype(out.dtype))

    return run(*(x.astype(dtype) for x in operands(tokens)))


@given(st.integers(1, 200))
def test_sizes_cover_every_need_and_waste_less_than_half(blocks):
    sizes = query_blocks.span_sizes(blocks)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == blocks
    for need in range(1, blocks + 1):
        chosen = next(size for size in sizes if size >= need)
        assert chosen <= 1.5 * need


@settings(max_examples=20)
@given(st.integers(0, 1000), st.sampled_from([None, 3, 70]))
def test_a_span_holds_all_that_its_queries_see(seed, window):
    mask = np.asarray(visible(rows(seed), window))
    needed = np.asarray(query_blocks.needed_blocks(jnp.asarray(mask)))
    size = query_blocks.SPAN_BLOCK
    for row, block in np.ndindex(needed.shape):
        seen = np.flatnonzero(mask[row, block * size : (block + 1) * size].any(axis=0))
        first = seen[0] // size if len(seen) else block
        assert needed[row, block] == block + 1 - first


@pytest.mark.parametrize('window', [None, 5])
def test_spans_equal_all_keys(window):
    tokens = rows(*range(6))
    choices = query_blocks.plan_spans(visible(tokens, window)).choices
    assert set(np.unique(choices)) == set(range(2 if window else LENGTH // 64))
    found = passes('spans', tokens, sliding_window=window)
    expected = passes('xla', tokens, sliding_window=window)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-5)


def test_gradients_in_16_bits_are_summed_in_32():
    tokens = rows(*range(3))
    found = passes('spans', tokens, jnp.bfloat16)
    for ours, theirs in zip(found, passes('xla', tokens), strict=True):
        assert ours.dtype == jnp.bfloat16
        error = jnp.linalg.norm(ours.astype(jnp.float32) - theirs)
        assert error < 0.01 * jnp.linalg.norm(theirs)


def test_each_device_chooses_the_spans_of_its_own_rows():
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    tokens = rows(*range(4))
    found = passes('spans', tokens, mesh=mesh)
    for ours, theirs in zip(found, passes('xla', tokens), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize('length', [query_blocks.SHORT, 200])
def test_short_rows_and_odd_lengths_have_no_spans(length):
    mask = jnp.ones((1, length, length), bool)
    assert query_blocks.plan_spans(mask).choices is None
