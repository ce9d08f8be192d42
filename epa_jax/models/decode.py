"""The decoder with the keys and values of earlier tokens kept.

Rows are padded on the left, so that all of them end, and grow, at the same place.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from epa_jax.models import rope, transformer
from epa_jax.models.mask import Tokens
from epa_jax.models.spec import ModelSpec
from epa_jax.types import Params

AXES = ('layers', 'batch', None, 'kv_heads', 'head_dim')  # of a cache


class Cache(NamedTuple):
    """Keys and values of every layer, [L, B, T, M, H]; letters as in `transformer`."""

    keys: jax.Array
    values: jax.Array


def read(
    params: Params,
    tokens_BP: jax.Array,
    starts_B: jax.Array,
    length: int,
    *,
    spec: ModelSpec,
    compute: transformer.Compute,
) -> tuple[jax.Array, Cache]:
    """Reads prompts at once and predicts the token after each.

    Args:
      params: as `transformer.abstract_params` describes them.
      tokens_BP: int32 [B, P], padded on the left.
      starts_B: int32 [B], where each prompt starts, below P.
      length: tokens that the cache is to hold, P or more.
      spec: architecture.
      compute: dtype and back end.

    Returns:
      Logits, float32 [B, V], and the cache of the prompts.
    """
    decoder = transformer.decoder(params, spec)
    graph, stacked = nnx.split(decoder.layers)
    width = tokens_BP.shape[1]
    positions = jnp.arange(width) - starts_B[:, None]
    segments = (positions >= 0).astype(jnp.int32)
    over_prompts = compute.attend(Tokens(positions, segments), spec.sliding_window)
    cos_sin = rope.cos_sin(positions, spec)

    def body(x: jax.Array, weights: Any) -> tuple[jax.Array, Cache]:
        kept: list[Cache] = []

        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            kept.append(Cache(k, v))
            return over_prompts(q, k, v)

        x = nnx.merge(graph, weights)(x, cos_sin, attend, spec, compute)
        return x, kept[0]

    x, cache = jax.lax.scan(body, _embed(decoder, tokens_BP, compute), stacked)
    room = [(0, 0), (0, 0), (0, length - width), (0, 0), (0, 0)]
    cache = Cache(*(compute.constrain(jnp.pad(c, room), AXES) for c in cache))
    return _logits(decoder, params, x[:, -1:], spec), cache


def next_logits(
    params: Params,
    cache: Cache,
    tokens_B: jax.Array,
    place: jax.Array,
    starts_B: jax.Array,
    *,
    spec: ModelSpec,
    compute: transformer.Compute,
) -> tuple[jax.Array, Cache]:
    """Reads one more token of each row and predicts the one after it.

    Args:
      params: as `transformer.abstract_params` describes them.
      cache: of the tokens at places 0 .. place - 1.
      tokens_B: int32 [B], the tokens at `place`.
      place: int32 [], the same in all rows.
      starts_B: int32 [B], where each row starts.
      spec: architecture.
      compute: dtype.

    Returns:
      Logits, float32 [B, V], and the cache with these tokens in it.
    """
    decoder = transformer.decoder(params, spec)
    graph, stacked = nnx.split(decoder.layers)
    cos_sin = rope.cos_sin((place - starts_B)[:, None], spec)
    seen_BT = _seen(cache.keys.shape[2], place, starts_B, spec.sliding_window)

    def body(carry: tuple, layer_in: tuple) -> tuple[tuple, None]:
        (x, cache), (weights, layer) = carry, layer_in
        grown = cache

        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            nonlocal grown
            # in the carry a token is written in place; as scanned output all would be
            grown = Cache(
                _write(cache.keys, k, layer, place), _write(cache.values, v, layer, place)
            )
            own = Cache(*(jax.lax.dynamic_index_in_dim(c, layer, 0, False) for c in grown))
            return _attend_one(q, own, seen_BT)

        x = nnx.merge(graph, weights)(x, cos_sin, attend, spec, compute)
        return (x, grown), None

    first = (_embed(decoder, tokens_B[:, None], compute), cache)
    (x, cache), _ = jax.lax.scan(body, first, (stacked, jnp.arange(spec.n_layers)))
    return _logits(decoder, params, x, spec), cache


def _embed(
    decoder: transformer.Decoder, tokens_BT: jax.Array, compute: transformer.Compute
) -> jax.Array:
    x = decoder.embed[...][tokens_BT].astype(compute.dtype)
    return compute.constrain(x, ('batch', None, None))


def _logits(
    decoder: transformer.Decoder, params: Params, x_B1D: jax.Array, spec: ModelSpec
) -> jax.Array:
    """Float32 [B, V]."""
    x = transformer.rms_norm(x_B1D, decoder.norm[...], spec.norm_eps)
    head = transformer.head_weights(params).astype(x.dtype)
    return jnp.einsum('btd,vd->btv', x, head, preferred_element_type=jnp.float32)[:, 0]


def _seen(
    length: int, place: jax.Array, starts_B: jax.Array, sliding_window: int | None
) -> jax.Array:
    """Which places the tokens at `place` attend to, bool [B, T]."""
    index = jnp.arange(length)
    seen = (index <= place) & (index >= starts_B[:, None])
    return seen if sliding_window is None else seen & (place - index < sliding_window)


def _write(
    old_LBTMH: jax.Array, new_B1MH: jax.Array, layer: jax.Array, place: jax.Array
) -> jax.Array:
    new = new_B1MH.astype(old_LBTMH.dtype)[None]
    return jax.lax.dynamic_update_slice(old_LBTMH, new, (layer, 0, place, 0, 0))


def _attend_one(q_B1NH: jax.Array, cache: Cache, seen_BT: jax.Array) -> jax.Array:
    """Softmax attention of one query of each row, [B, 1, N, H]; softmax in float32."""
    batch, _, heads, width = q_B1NH.shape
    kv_heads = cache.keys.shape[2]
    q = (q_B1NH * width**-0.5).reshape(batch, kv_heads, heads // kv_heads, width)
    scores = jnp.einsum(
        'bmgh,btmh->bmgt', q, cache.keys, preferred_element_type=jnp.float32
    )
    lowest = jnp.finfo(jnp.float32).min
    scores = jnp.where(seen_BT[:, None, None], scores, lowest)
    probs = jax.nn.softmax(scores, axis=-1).astype(cache.values.dtype)
    out = jnp.einsum('bmgt,btmh->bmgh', probs, cache.values)
    return out.reshape(batch, 1, heads, width)
