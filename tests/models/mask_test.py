"""The mask rule against its definition token by token."""

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np

from epa_jax.models import mask
from tests import tiny


def packed(seed, length, responses=3):
    """Two rows of two random groups each, and the mask's view of them."""
    groups = tiny.random_groups(seed, 4, responses)
    batch = tiny.pack_by_hand([groups[:2], groups[2:]], length, 2, responses)
    arrays = (batch.positions, batch.segments, batch.branches)
    return batch, mask.Tokens(*map(jnp.asarray, arrays))


def visible_by_hand(batch, b, t, s, window):
    if s > t or batch.segments[b, t] != batch.segments[b, s]:
        return False
    if batch.branches[b, s] not in (0, batch.branches[b, t]):
        return False
    return window is None or batch.positions[b, t] - batch.positions[b, s] < window


@hypothesis.given(seed=st.integers(0, 100), window=st.sampled_from([None, 1, 3, 50]))
def test_mask_follows_the_rule(seed, window):
    batch, tokens = packed(seed, 64)
    found = np.asarray(mask.visible(tokens, window))
    for b, t, s in np.ndindex(found.shape):
        assert found[b, t, s] == visible_by_hand(batch, b, t, s, window), (b, t, s)


@hypothesis.given(seed=st.integers(0, 100), window=st.sampled_from([None, 3]))
def test_with_one_response_a_prompt_branches_do_not_matter(seed, window):
    _, tokens = packed(seed, 32, responses=1)
    assert np.any(tokens.branches)
    np.testing.assert_array_equal(
        mask.visible(tokens, window), mask.visible(tokens._replace(branches=None), window)
    )
