"""A tile's scores against the dense mask; tokens as the kernels load them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epa_jax.models import flash_tiles, mask
from tests.models.mask_test import packed


@pytest.mark.parametrize(('of_queries', 'of_keys'), [(0, 0), (1, 0), (2, 1)])
def test_a_tile_of_scores_is_a_part_of_all_scores(of_queries, of_keys):
    tokens = packed(1, 48)[1]
    q, k = jax.random.normal(jax.random.key(0), (2, 48, 8))
    everything = np.where(mask.visible(tokens, 4)[0], q @ k.T, flash_tiles.MASKED)
    stacked = flash_tiles.stack_tokens(tokens)[0]
    here, there = (slice(16 * i, 16 * i + 16) for i in (of_queries, of_keys))
    found = flash_tiles.scores(
        q[here], k[there], (stacked[:, here], stacked[:, there]), (of_queries, of_keys), 4
    )
    np.testing.assert_allclose(found.T, everything[here, there], rtol=1e-5, atol=1e-5)


def test_tokens_without_branches_are_all_of_one_branch():
    tokens = packed(0, 48)[1]
    np.testing.assert_array_equal(
        flash_tiles.stack_tokens(tokens._replace(branches=None)),
        flash_tiles.stack_tokens(tokens._replace(branches=0 * tokens.branches)),
    )
    assert jnp.all(flash_tiles.stack_tokens(tokens)[:, 2] == tokens.branches)
