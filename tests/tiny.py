"""Small models and batches shared by tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from epa_jax.models import transformer
from epa_jax.models.spec import ModelSpec
from epa_jax.types import PackedBatch, Role

SPEC = ModelSpec(
    model_type='llama',
    vocab_size=48,
    d_model=16,
    d_ff=24,
    n_layers=3,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    norm_eps=1e-5,
    rope_theta=1e4,
    rope_scaling=None,
    sliding_window=None,
    tie_embeddings=True,
    attention_bias=False,
    mlp_bias=False,
    max_positions=128,
)


def params(spec: ModelSpec = SPEC, seed: int = 0, scale: float = 8.0):
    """Random parameters, larger than at initialisation so that outputs differ clearly."""
    tree = transformer.init_params(spec, jax.random.key(seed))
    return jax.tree.map(lambda p: p * (scale if p.ndim > 2 else 1.0), tree)


def sequence_logps(tree, spec, prompt, response):
    """Log-prob of each response token, one unpadded sequence through the whole softmax."""
    logps = sequence_distributions(tree, spec, prompt, response)
    return logps[np.arange(len(response)), np.asarray(response)]


def sequence_distributions(tree, spec, prompt, response):
    """The log-probs [R, V] from which each response token is drawn."""
    logits = sequence_logits(tree, spec, [*prompt, *response])
    return jax.nn.log_softmax(logits[len(prompt) - 1 : -1], axis=-1)


def sequence_logits(tree, spec, tokens):
    """Logits [T, V] at every place of one sequence, without padding."""
    return sequence_states(tree, spec, tokens) @ transformer.head_weights(tree).T


def sequence_states(tree, spec, tokens):
    """Hidden states [T, D] at every place of one sequence, without padding."""
    return _states(tree, jnp.asarray(tokens, jnp.int32), spec=spec)


@functools.partial(jax.jit, static_argnames='spec')
def _states(tree, tokens_T, *, spec):
    ones = jnp.ones_like(tokens_T)[None]
    return transformer.hidden_states(
        tree,
        tokens_T[None],
        jnp.arange(len(tokens_T))[None],
        ones,
        0 * ones,
        spec=spec,
        compute=transformer.Compute(),
    )[0]


def random_groups(seed: int, count: int, responses: int = 3, vocab: int = 48):
    """`count` prompts with `responses` responses of random lengths, as lists of ids."""
    rng = np.random.default_rng(seed)

    def ids(low, high):
        return rng.integers(1, vocab, rng.integers(low, high)).tolist()

    return [(ids(2, 7), [ids(1, 6) for _ in range(responses)]) for _ in range(count)]


def pack_by_hand(rows, length: int, groups_per_row: int, responses: int) -> PackedBatch:
    """Plain-loop packing of `rows` (lists of groups), independent of data.packing."""
    shape, table = (len(rows), length), (len(rows), groups_per_row, responses)
    out = {
        name: np.zeros(shape, np.int32)
        for name in ('tokens', 'positions', 'segments', 'branches')
    }
    score = {n: np.zeros(shape, np.int32) for n in ('score_positions', 'score_targets')}
    slots = np.full(shape, groups_per_row * responses, np.int32)
    lengths, roles = np.zeros(table, np.int32), np.zeros(table, np.int8)
    keys = np.full(table[:2], -1, np.int32)
    for b, groups in enumerate(rows):
        t = s = 0
        for g, (prompt, answers) in enumerate(groups):
            keys[b, g] = g
            start = t
            for k, ids in enumerate([prompt, *answers]):
                offset = len(prompt) if k else 0
                for i, token in enumerate(ids):
                    out['tokens'][b, t] = token
                    out['positions'][b, t] = offset + i
                    out['segments'][b, t] = g + 1
                    out['branches'][b, t] = k
                    if k:
                        last_prompt = start + len(prompt) - 1
                        score['score_positions'][b, s] = t - 1 if i else last_prompt
                        score['score_targets'][b, s] = token
                        slots[b, s] = g * responses + k - 1
                        s += 1
                    t += 1
                if k:
                    lengths[b, g, k - 1] = len(ids)
                    roles[b, g, k - 1] = Role.CHOSEN if k == 1 else Role.REJECTED
    return PackedBatch(
        **out,
        **score,
        score_slots=slots,
        lengths=lengths,
        roles=roles,
        ratings=np.full(table, np.nan, np.float32),
        keys=keys,
    )
