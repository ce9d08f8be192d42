"""Blocks to visit against the dense mask, and the lists that kernels follow."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epa_jax.models import block_map, mask
from tests.models.mask_test import packed

BLOCK = 16
VISITS = jax.jit(block_map.visits, static_argnums=(1, 2))


def needed(tokens, window):
    """Pairs of blocks with a visible pair of tokens in them, counted on the dense mask."""
    seen = np.asarray(mask.visible(tokens, window)) & (tokens.segments != 0)[:, :, None]
    rows, length, _ = seen.shape
    n = length // BLOCK
    blocks = seen.reshape(rows, n, BLOCK, n, BLOCK).any(axis=(2, 4))
    return blocks | np.eye(n, dtype=bool)


def scattered(seed):
    """Tokens in no order at all, which packing would never make."""
    rng = np.random.default_rng(seed)
    return mask.Tokens(
        *(jnp.asarray(rng.integers(0, 4, (2, 64)), jnp.int32) for _ in 'psb')
    )


@hypothesis.given(
    seed=st.integers(0, 50),
    window=st.sampled_from([None, 1, 3]),
    tokens_of=st.sampled_from([lambda seed: packed(seed, 64)[1], scattered]),
)
def test_exactly_the_blocks_that_hold_a_visible_pair_are_visited(seed, window, tokens_of):
    tokens = tokens_of(seed)
    found = VISITS(tokens, window, BLOCK)
    np.testing.assert_array_equal(found, needed(tokens, window))


def test_other_segments_other_branches_and_what_is_out_of_the_window_are_skipped():
    # one row: prompt | response 1 | response 2 | the next prompt | padding | padding
    segments = jnp.repeat(jnp.array([[1, 1, 1, 2, 0, 0]]), BLOCK, axis=1)
    branches = jnp.repeat(jnp.array([[0, 1, 2, 0, 0, 0]]), BLOCK, axis=1)
    starts = jnp.repeat(jnp.array([[0, 1, 1, 0, 0, 0]]), BLOCK, axis=1) * BLOCK
    tokens = mask.Tokens(starts + jnp.tile(jnp.arange(BLOCK), 6), segments, branches)
    visits = np.eye(6, dtype=bool)
    visits[1:3, 0] = True  # both responses look at their prompt
    np.testing.assert_array_equal(block_map.visits(tokens, None, BLOCK)[0], visits)
    np.testing.assert_array_equal(block_map.visits(tokens, 1, BLOCK)[0], np.eye(6))


@pytest.mark.parametrize('order', ['query', 'key'])
def test_the_lists_hold_every_pair_once_output_by_output(order):
    visits = needed(packed(3, 96)[1], None)
    steps = jax.jit(getattr(block_map, f'by_{order}'))(visits)
    (count,) = np.asarray(steps.visited)
    row, query, key, first, last = (np.asarray(x)[:count] for x in steps.lists)
    pairs = list(zip(row, query, key, strict=True))
    assert sorted(pairs) == list(zip(*np.nonzero(visits), strict=True))
    outputs = list(zip(row, query if order == 'query' else key, strict=True))
    assert len(set(outputs)) == visits[..., 0].size  # each block is some step's output
    for i, output in enumerate(outputs):
        assert first[i] == (i == 0 or outputs[i - 1] != output)
        assert last[i] == (i == count - 1 or outputs[i + 1] != output)
    assert len(set(outputs)) == first.sum() == last.sum()
