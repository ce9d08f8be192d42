"""Blocks of the vocabulary against a log-softmax of all of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from epa_jax import sharding, vocabulary
from epa_jax.planning import hlo
from epa_jax.schema import MeshConfig
from epa_jax.vocabulary import Blocks

V, D, B, S = 33, 8, 2, 12
# blocks that divide the vocabulary, that overlap at its end, and that exceed it
BLOCKS = [Blocks(4, 11), Blocks(4, 10), Blocks(12, 50)]


@pytest.fixture(scope='module')
def states():
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(B, S, D)), jnp.float32)
    head = jnp.asarray(rng.normal(size=(V, D)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, V, (B, S)), jnp.int32)
    return hidden, head, targets.at[0, :2].set(jnp.array([V - 1, 0]))


def log_softmax(hidden, head):
    return jax.nn.log_softmax(jnp.einsum('bsd,vd->bsv', hidden, head))


@pytest.mark.parametrize('count', [0, 1, 7, 12])
@pytest.mark.parametrize('blocks', BLOCKS)
def test_log_probs_and_their_gradients(states, blocks, count):
    hidden, head, targets = states
    rng = np.random.default_rng(1)
    weights = jnp.asarray(rng.normal(size=(B, S)) * (np.arange(S) < count))

    def direct(hidden, head):
        logps = log_softmax(hidden, head)
        return jnp.sum(weights * jnp.take_along_axis(logps, targets[..., None], -1)[..., 0])

    def blocked(hidden, head):
        logps = vocabulary.token_logps(hidden, head, targets, jnp.int32(count), blocks)
        return jnp.sum(weights * logps)

    expected = jax.value_and_grad(direct, (0, 1))(hidden, head)
    got = jax.jit(jax.value_and_grad(blocked, (0, 1)))(hidden, head)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_chunks_of_padding_are_zero(states):
    logps = vocabulary.token_logps(*states, jnp.int32(5), Blocks(4, 10))
    assert np.all(logps[:, :8] < 0)
    np.testing.assert_array_equal(logps[:, 8:], 0.0)


def test_logits_far_from_zero(states):
    hidden, head, targets = states
    for shift in (-300.0, 300.0):
        far = head.at[:, 0].set(1.0)
        moved = hidden.at[..., 0].set(shift)  # the same for all words
        expected = log_softmax(hidden.at[..., 0].set(0.0), far)
        got = vocabulary.token_logps(moved, far, targets, jnp.int32(S), Blocks(4, 10))
        chosen = jnp.take_along_axis(expected, targets[..., None], -1)[..., 0]
        np.testing.assert_allclose(got, chosen, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('blocks', BLOCKS)
def test_collisions_and_likeliest(states, blocks):
    hidden, head, _ = states
    logps = np.asarray(log_softmax(hidden, head), np.float64)
    got = vocabulary.token_collisions(hidden, head, jnp.int32(S), blocks)
    np.testing.assert_allclose(got, np.log(np.exp(2 * logps).sum(-1)), rtol=1e-5, atol=1e-5)
    found = vocabulary.token_likeliest(hidden, head, jnp.int32(S), blocks)
    np.testing.assert_array_equal(found, logps.argmax(-1))


@pytest.mark.parametrize('blocks', BLOCKS)
def test_of_equally_likely_words_the_first_counts(blocks):
    hidden, head = jnp.ones((1, 12, D)), jnp.zeros((V, D)).at[jnp.array([5, 20, 31])].set(1)
    found = vocabulary.token_likeliest(hidden, head, jnp.int32(S), blocks)
    np.testing.assert_array_equal(found, np.full((1, S), 5))


def test_bfloat16_states_are_summed_in_float32(states):
    hidden, head, targets = states
    got = vocabulary.token_logps(
        hidden.astype(jnp.bfloat16), head, targets, jnp.int32(S), Blocks(4, 10)
    )
    assert got.dtype == jnp.float32
    rounded = [x.astype(jnp.bfloat16).astype(jnp.float32) for x in (hidden, head)]
    chosen = jnp.take_along_axis(log_softmax(*rounded), targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(got, chosen, rtol=1e-5, atol=1e-5)


def test_devices_add_up_the_gradient_of_each_word_once():
    """A sum that a loop over chunks carries would be completed in every round."""
    mesh = sharding.make_mesh(MeshConfig(1, 8, 1))
    rows = sharding.rows(mesh)
    head = jax.ShapeDtypeStruct(
        (64, 16), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(None, 'fsdp'))
    )
    hidden = jax.ShapeDtypeStruct((8, 32, 16), jnp.float32, sharding=rows)
    targets = jax.ShapeDtypeStruct((8, 32), jnp.int32, sharding=rows)

    def reduced(chunk):
        def total(head, hidden, targets):
            blocks = Blocks(chunk, 16, mesh)
            logps = vocabulary.token_logps(hidden, head, targets, jnp.int32(32), blocks)
            return jnp.sum(logps)

        program = jax.jit(jax.grad(total), out_shardings=head.sharding)
        text = program.lower(head, hidden, targets).compile().as_text()
        return sum(
            found.bytes * found.count
            for found in hlo.collectives(text, dynamic_trips=32 // chunk)
            if found.kind in ('all-reduce', 'reduce-scatter')
        )

    whole = 4 * 64 * 16
    assert reduced(32) <= whole
    assert reduced(8) >= 4 * reduced(32) > 0
