"""Samples responses from a policy.

There is no cache of keys and values: each token costs a pass over the whole row, which
suits short rows.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from epa_jax.models import transformer
from epa_jax.models.spec import ModelSpec
from epa_jax.types import Params

STRIDE = 8  # row lengths are multiples of it, and rows grow by it
ROWS = 256  # most rows of a batch


def sample(
    params: Params,
    spec: ModelSpec,
    compute: transformer.Compute,
    prompts: Sequence[np.ndarray],
    *,
    max_new_tokens: int,
    eos_id: int,
    key: jax.Array,
    temperature: float = 1.0,
    draws: Sequence[int] | None = None,
    rows: int = ROWS,
) -> list[np.ndarray]:
    """One response to each prompt.

    The random numbers of a response follow from `key` and its draw alone, so neither the
    other prompts nor their order nor padding change it (but for rounding, which can only
    matter where two tokens tie).

    Args:
      params: as `transformer.abstract_params` describes them.
      spec: architecture.
      compute: dtype and back end.
      prompts: arrays of int token ids, none empty; the beginning of sequence included.
      max_new_tokens: tokens after which a response is cut off.
      eos_id: token that ends a response.
      key: random key.
      temperature: divides the logits; 0 takes the likeliest token.
      draws: a number for each prompt; equal prompts get independent responses by
        different numbers. Its place in `prompts` unless given.
      rows: most rows computed together.

    Returns:
      int32 arrays in the order of `prompts`; the last token is `eos_id` unless the
      response was cut off.
    """
    draws = range(len(prompts)) if draws is None else draws
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.asarray(draws, jnp.uint32))
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    out: list[np.ndarray] = [np.zeros(0, np.int32)] * len(prompts)
    rows = min(rows, len(prompts))
    for start in range(0, len(prompts), rows):
        members = order[start : start + rows]
        padded = members + members[:1] * (rows - len(members))  # one shape for all
        responses = _sample_rows(
            params,
            spec,
            compute,
            [prompts[i] for i in padded],
            keys[np.array(padded)],
            max_new_tokens,
            eos_id,
            temperature,
        )
        for i, response in zip(members, responses, strict=False):
            out[i] = response
    return out


def _sample_rows(
    params: Params,
    spec: ModelSpec,
    compute: transformer.Compute,
    prompts: Sequence[np.ndarray],
    keys: jax.Array,
    max_new_tokens: int,
    eos_id: int,
    temperature: float,
) -> list[np.ndarray]:
    """Grows rows by `STRIDE` until all have ended; few shapes, no row much too long."""
    starts = np.array([len(prompt) for prompt in prompts])
    width = -(-int(starts.max()) // STRIDE) * STRIDE
    tokens_BT = np.zeros((len(prompts), width), np.int32)
    for b, prompt in enumerate(prompts):
        tokens_BT[b, : len(prompt)] = prompt
    limits = starts + max_new_tokens
    ends, open_B = starts, np.ones(len(prompts), bool)
    while open_B.any():
        tokens_BT = np.pad(tokens_BT, ((0, 0), (0, STRIDE)))
        tokens_BT, ends, open_B = jax.device_get(
            _extend(
                params,
                tokens_BT,
                ends,
                open_B,
                starts,
                limits,
                keys,
                float(temperature),
                eos_id,
                spec=spec,
                compute=compute,
            )
        )
    return [row[start:end] for row, start, end in zip(tokens_BT, starts, ends, strict=True)]


@functools.partial(jax.jit, static_argnames=('spec', 'compute'))
def _extend(
    params: Params,
    tokens_BT: jax.Array,
    ends_B: jax.Array,
    open_B: jax.Array,
    starts_B: jax.Array,
    limits_B: jax.Array,
    keys_B: jax.Array,
    temperature: jax.Array,
    eos_id: jax.Array,
    *,
    spec: ModelSpec,
    compute: transformer.Compute,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Appends tokens to open rows until each has ended, or a row is full.

    Returns:
      Tokens [B, T], where each row ends [B], and which have not ended [B].
    """
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    ones_BT = jnp.ones_like(tokens_BT)
    rows = jnp.arange(tokens_BT.shape[0])

    def goes_on(carry: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        _, ends, is_open = carry
        return jnp.any(is_open) & (jnp.max(ends) < tokens_BT.shape[1])

    def append(
        carry: tuple[jax.Array, jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        tokens, ends, is_open = carry
        hidden = transformer.hidden_states(
            params,
            tokens,
            positions_BT,
            ones_BT,
            0 * ones_BT,
            spec=spec,
            compute=compute,
        )
        head = transformer.head_weights(params).astype(hidden.dtype)
        logits = jnp.einsum(
            'bd,vd->bv', hidden[rows, ends - 1], head, preferred_element_type=jnp.float32
        )
        chosen = _choose(logits, keys_B, ends - starts_B, temperature)
        place = jnp.where(is_open, ends, tokens.shape[1])  # beyond the row: not written
        tokens = tokens.at[rows, place].set(chosen, mode='drop')
        ends = ends + is_open
        return tokens, ends, is_open & (chosen != eos_id) & (ends < limits_B)

    return jax.lax.while_loop(goes_on, append, (tokens_BT, ends_B, open_B))


def _choose(
    logits_BV: jax.Array, keys_B: jax.Array, counts_B: jax.Array, temperature: jax.Array
) -> jax.Array:
    """A token for each row, int32 [B]; `counts_B` tokens were chosen before."""
    keys = jax.vmap(jax.random.fold_in)(keys_B, counts_B)
    scaled = logits_BV / jnp.where(temperature > 0, temperature, 1.0)
    drawn = jax.vmap(jax.random.categorical)(keys, scaled)
    likeliest = jnp.argmax(logits_BV, axis=-1)
    return jnp.where(temperature > 0, drawn, likeliest).astype(jnp.int32)
