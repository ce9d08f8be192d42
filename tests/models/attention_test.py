"""The mask rule against its definition token by token, attention against plain softmax."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epa_jax.models import attention
from tests import tiny


def visible_by_hand(batch, b, t, s, window):
    if s > t or batch.segments[b, t] != batch.segments[b, s]:
        return False
    if batch.branches[b, s] not in (0, batch.branches[b, t]):
        return False
    return window is None or batch.positions[b, t] - batch.positions[b, s] < window


@hypothesis.given(seed=st.integers(0, 100), window=st.sampled_from([None, 1, 3, 50]))
def test_mask_follows_the_rule(seed, window):
    groups = tiny.random_groups(seed, 3)
    batch = tiny.pack_by_hand([groups[:2], groups[2:]], 64, 2, 3)
    mask = np.asarray(
        attention.visible(
            jnp.asarray(batch.positions),
            jnp.asarray(batch.segments),
            jnp.asarray(batch.branches),
            window,
        )
    )
    for b, t, s in np.ndindex(mask.shape):
        assert mask[b, t, s] == visible_by_hand(batch, b, t, s, window), (b, t, s)


@pytest.mark.parametrize('length', [7, 256, 600])
def test_blocks_equal_plain_attention_with_repeated_heads(length):
    rng = np.random.default_rng(0)
    q = jnp.asarray(rng.normal(size=(2, length, 4, 8)), jnp.float32)
    k, v = (jnp.asarray(rng.normal(size=(2, length, 2, 8)), jnp.float32) for _ in 'kv')
    mask = np.tril(rng.random((2, length, length)) < 0.5) | np.eye(length, dtype=bool)

    def plain(q, k, v):
        k, v = jnp.repeat(k, 2, axis=2), jnp.repeat(v, 2, axis=2)
        scores = jnp.einsum('bqnh,bknh->bnqk', q, k) / np.sqrt(8)
        weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -jnp.inf), axis=-1)
        return jnp.einsum('bnqk,bknh->bqnh', weights, v)

    def ours(q, k, v):
        return attention.attend(q, k, v, jnp.asarray(mask), 'xla')

    np.testing.assert_allclose(ours(q, k, v), plain(q, k, v), rtol=1e-5, atol=1e-5)
    got = jax.grad(lambda *a: jnp.sum(jnp.sin(ours(*a))), (0, 1, 2))(q, k, v)
    expected = jax.grad(lambda *a: jnp.sum(jnp.sin(plain(*a))), (0, 1, 2))(q, k, v)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_an_unknown_back_end_is_refused():
    x = jnp.zeros((1, 2, 2, 4))
    with pytest.raises(
        ValueError, match="attention back end 'flash': expected auto or xla"
    ):
        attention.attend(x, x, x, jnp.ones((1, 2, 2), bool), 'flash')
