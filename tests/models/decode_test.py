"""Prompts at once and one token at a time against whole sequences."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epa_jax.models import decode, transformer
from tests import tiny

VARIANTS = {
    'grouped heads': {},
    'sliding window': {'model_type': 'mistral', 'sliding_window': 3},
    'biases, own head': {'attention_bias': True, 'tie_embeddings': False},
}


@pytest.mark.parametrize('changes', VARIANTS.values(), ids=list(VARIANTS))
def test_every_next_token_has_the_logits_of_the_whole_sequence(changes):
    spec, compute = dataclasses.replace(tiny.SPEC, **changes), transformer.Compute()
    params = tiny.params(spec)
    tokens_BT = jax.random.randint(jax.random.key(1), (2, 9), 1, spec.vocab_size)
    ones_BT = jnp.ones_like(tokens_BT)
    places_BT = jnp.broadcast_to(jnp.arange(9), (2, 9))
    hidden = transformer.hidden_states(
        params, tokens_BT, places_BT, ones_BT, 0 * ones_BT, spec=spec, compute=compute
    )
    expected = hidden @ transformer.head_weights(params).T

    @jax.jit
    def step(cache, tokens, place, starts):
        return decode.next_logits(
            params, cache, tokens, place, starts, spec=spec, compute=compute
        )

    # prompts of 5 and of 3 tokens, on the left of place 6
    starts, offset = np.array([1, 3]), np.array([1, 3])[:, None]
    index = np.arange(6) - offset
    padded = np.where(index >= 0, np.take_along_axis(tokens_BT, index.clip(0), 1), 7)
    logits, cache = decode.read(params, padded, starts, 12, spec=spec, compute=compute)
    rows = np.arange(2)
    for place in range(6, 9):
        last = place - 1 - starts
        np.testing.assert_allclose(logits, expected[rows, last], rtol=1e-4, atol=1e-5)
        logits, cache = step(cache, tokens_BT[rows, last + 1], place, starts)
