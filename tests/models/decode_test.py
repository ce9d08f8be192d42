"""One token at a time against whole sequences."""

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
    def step(cache, tokens, place):
        return decode.next_logits(params, cache, tokens, place, spec=spec, compute=compute)

    cache = decode.empty_cache(spec, 2, 12, 'float32')
    for t in range(9):
        logits, cache = step(cache, tokens_BT[:, t], t)
        np.testing.assert_allclose(logits, expected[:, t], rtol=1e-4, atol=1e-5)
