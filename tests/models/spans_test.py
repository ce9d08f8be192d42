"""Spans of keys hold all that queries see, and give what all keys give."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epa_jax import sharding
from epa_jax.models import attention, spans
from epa_jax.models.mask import Tokens, visible
from epa_jax.schema import MeshConfig

LENGTH = 320


def rows(*seeds):
    """A row for each seed, cut at random into prompts with two responses, and padding."""
    arrays = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        starts = rng.random(LENGTH) < rng.choice([0.0, 0.01, 0.05])
        padding = rng.choice([20, 150])
        starts[0], starts[-padding] = True, True
        segments = np.cumsum(starts)
        segments[-padding:] = 0
        since = np.arange(LENGTH) - np.maximum.accumulate(np.arange(LENGTH) * starts)
        arrays.append((since, segments, np.clip(since // rng.choice([20, 90]), 0, 2)))
    return Tokens(*(jnp.array(x, jnp.int32) for x in zip(*arrays, strict=True)))


def seen(tokens, window=None):
    """Who sees what, but for padding."""
    return visible(tokens, window) & (tokens.segments > 0)[:, :, None]


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


@given(st.integers(spans.SHORT + 1, 12800))
def test_lengths_cover_every_need_and_waste_a_block_or_a_quarter(row):
    lengths = spans.lengths(row)
    assert lengths == sorted(set(lengths))
    assert lengths[-1] == row
    assert all(length % spans.BLOCK == 0 for length in lengths[:-1])
    for need in range(1, row + 1, 61):
        chosen = next(length for length in lengths if length >= need)
        assert chosen < need + spans.BLOCK or chosen <= 1.25 * need


def span_of(known, row, block):
    """Keys of a block's span, in order and as often as they are in it."""
    choice, first, near, end = (int(x[row, block]) for x in known.spans)
    if choice == 0:
        return []
    size = spans.lengths(LENGTH)[choice - 1]
    assert end - size >= 0
    assert end <= LENGTH
    assert not near or first + size <= LENGTH
    return [*range(first, first + near), *range(end - size + near, end)]


@settings(max_examples=20)
@given(st.integers(0, 1000), st.sampled_from([None, 3, 70]))
def test_a_span_has_all_that_its_queries_see_once_and_its_length_is_needed(seed, window):
    mask = np.asarray(seen(rows(seed), window))
    known = spans.plan(jnp.asarray(mask))
    for row, block in np.ndindex(known.spans.choices.shape):
        here = slice(block * spans.BLOCK, (block + 1) * spans.BLOCK)
        keys = np.flatnonzero(mask[row, here].any(axis=0))
        span = span_of(known, row, block)
        assert len(set(span)) == len(span)
        assert set(keys) <= set(span)
        gaps = [b - a - 1 for a, b in itertools.pairwise(keys)]
        need = keys[-1] + 1 - keys[0] - max(gaps, default=0) if len(keys) else 0
        assert len(span) == next(n for n in [0, *spans.lengths(LENGTH)] if n >= need)


def test_responses_between_a_prompt_and_the_last_response_are_cut_out():
    prompt, response = 70, 50  # five responses fill the row
    place = np.arange(LENGTH)
    branches = np.where(place < prompt, 0, (place - prompt) // response + 1)
    positions = np.where(branches, prompt + (place - prompt) % response, place)
    one = jnp.ones((1, LENGTH), jnp.int32)
    tokens = Tokens(jnp.array(positions[None]), one, jnp.array(branches[None]))
    span = span_of(spans.plan(seen(tokens)), 0, LENGTH // spans.BLOCK - 1)
    assert len(span) == 192  # of the last 64 tokens: the prompt, and the last two responses
    assert set(range(prompt)) <= set(span)
    assert not set(range(prompt, prompt + 2 * response)) & set(span)


@pytest.mark.parametrize('window', [None, 5])
def test_spans_equal_all_keys(window):
    tokens = rows(*range(10))
    known = spans.plan(seen(tokens, window)).spans
    assert set(np.unique(known.choices)) == set(range(3 if window else LENGTH // 64 + 1))
    assert np.any(known.nears) == (window is None)  # or nothing would be cut out here
    found = passes('spans', tokens, sliding_window=window)
    expected = passes('xla', tokens, sliding_window=window)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-5)


def test_blocks_of_padding_cost_nothing_and_give_zeros():
    tokens = rows(*range(6))
    empty = np.asarray(tokens.segments == 0).reshape(6, -1, spans.BLOCK).all(axis=2)
    assert empty.any()
    np.testing.assert_array_equal(spans.plan(seen(tokens)).spans.choices == 0, empty)
    q, k, v, _ = operands(tokens)
    out = attention.attend(q, k, v, tokens, backend='spans')
    of_blocks = np.asarray(out, np.float32).reshape(6, -1, spans.BLOCK, 4 * 8)
    np.testing.assert_array_equal(of_blocks[empty], 0)
    assert np.isfinite(of_blocks).all()


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


@pytest.mark.parametrize('length', [spans.SHORT, 200])
def test_short_rows_and_odd_lengths_have_no_spans(length):
    mask = jnp.ones((1, length, length), bool)
    assert spans.plan(mask).spans is None
