"""Samples responses from a policy.

Prompts are read token by token like responses, so a batch costs as many small steps as
its longest prompt and response have tokens together.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from epa_jax.models import decode, transformer
from epa_jax.models.spec import ModelSpec
from epa_jax.types import Params

STRIDE = 32  # row lengths are multiples of it, for few compilations
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
    rows = max(min(rows, len(prompts)), 1)
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
    starts = np.array([len(prompt) for prompt in prompts], np.int32)
    width = -(-(int(starts.max()) + max_new_tokens) // STRIDE) * STRIDE
    tokens_BT = np.zeros((len(prompts), width), np.int32)
    for b, prompt in enumerate(prompts):
        tokens_BT[b, : len(prompt)] = prompt
    settings = _Settings(
        starts, starts + max_new_tokens, keys, np.float32(temperature), np.int32(eos_id)
    )
    out = _complete(params, tokens_BT, settings, spec=spec, compute=compute)
    rows, ends = jax.device_get(out)
    return [row[start:end] for row, start, end in zip(rows, starts, ends, strict=True)]


class _Settings(NamedTuple):
    """What is fixed while rows grow: lengths, int32 [B], keys [B] and two scalars."""

    starts: jax.Array | np.ndarray
    limits: jax.Array | np.ndarray
    keys: jax.Array
    temperature: jax.Array | np.floating
    eos_id: jax.Array | np.integer


class _Rows(NamedTuple):
    """Rows that grow together.

    Attributes:
      tokens: int32 [B, T].
      ends: int32 [B]; tokens of each row, prompt included.
      is_open: bool [B]; the row has not ended.
      cache: of the tokens before `place`.
      place: int32 []; of the tokens to read next.
    """

    tokens: jax.Array
    ends: jax.Array
    is_open: jax.Array
    cache: decode.Cache
    place: jax.Array


@functools.partial(jax.jit, static_argnames=('spec', 'compute'))
def _complete(
    params: Params,
    tokens_BT: jax.Array,
    settings: _Settings,
    *,
    spec: ModelSpec,
    compute: transformer.Compute,
) -> tuple[jax.Array, jax.Array]:
    """Tokens [B, T] with responses, and where each row ends [B]."""
    batch, length = tokens_BT.shape

    def step(rows: _Rows) -> _Rows:
        logits, cache = decode.next_logits(
            params,
            rows.cache,
            rows.tokens[:, rows.place],
            rows.place,
            spec=spec,
            compute=compute,
        )
        place = rows.place + 1
        writes = rows.is_open & (place >= settings.starts)
        chosen = _choose(logits, place - settings.starts, settings)
        kept = jnp.where(writes, chosen, rows.tokens[:, place])
        return _Rows(
            tokens=rows.tokens.at[:, place].set(kept),
            ends=rows.ends + writes,
            is_open=rows.is_open
            & ~(writes & (chosen == settings.eos_id))
            & (place + 1 < settings.limits),
            cache=cache,
            place=place,
        )

    first = _Rows(
        tokens=jnp.asarray(tokens_BT),
        ends=jnp.asarray(settings.starts),
        is_open=jnp.asarray(settings.limits > settings.starts),
        cache=decode.empty_cache(spec, batch, length, compute.dtype),
        place=jnp.zeros((), jnp.int32),
    )
    last = jax.lax.while_loop(lambda rows: jnp.any(rows.is_open), step, first)
    return last.tokens, last.ends


def _choose(logits_BV: jax.Array, counts_B: jax.Array, settings: _Settings) -> jax.Array:
    """A token for each row, int32 [B]; `counts_B` tokens were chosen before."""
    keys = jax.vmap(jax.random.fold_in)(settings.keys, counts_B)
    hot = settings.temperature > 0
    scaled = logits_BV / jnp.where(hot, settings.temperature, 1.0)
    drawn = jax.vmap(jax.random.categorical)(keys, scaled)
    return jnp.where(hot, drawn, jnp.argmax(logits_BV, axis=-1)).astype(jnp.int32)
