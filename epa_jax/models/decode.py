"""The decoder one token at a time, with the keys and values of earlier tokens kept."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from epa_jax.models import rope, transformer
from epa_jax.models.spec import ModelSpec
from epa_jax.types import Params


class Cache(NamedTuple):
    """Keys and values of every layer, [L, B, T, M, H]; letters as in `transformer`."""

    keys: jax.Array
    values: jax.Array


def empty_cache(spec: ModelSpec, rows: int, length: int, dtype: Any) -> Cache:
    """Room for `rows` sequences of at most `length` tokens."""
    shape = (spec.n_layers, rows, length, spec.n_kv_heads, spec.head_dim)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def next_logits(
    params: Params,
    cache: Cache,
    tokens_B: jax.Array,
    place: jax.Array,
    *,
    spec: ModelSpec,
    compute: transformer.Compute,
) -> tuple[jax.Array, Cache]:
    """Reads one token of each sequence and predicts the one after it.

    Args:
      params: as `transformer.abstract_params` describes them.
      cache: of the tokens at places 0 .. place - 1.
      tokens_B: int32 [B], the tokens at `place`.
      place: int32 [], position in all sequences.
      spec: architecture.
      compute: dtype.

    Returns:
      Logits, float32 [B, V], and the cache with these tokens in it.
    """
    decoder = transformer.decoder(params, spec)
    graph, stacked = nnx.split(decoder.layers)
    cos_sin = rope.cos_sin(jnp.full((len(tokens_B), 1), place), spec)
    seen_T = _seen(cache.keys.shape[2], place, spec.sliding_window)

    def body(x: jax.Array, layer_in: tuple[Any, Cache]) -> tuple[jax.Array, Cache]:
        weights, old = layer_in
        new = old

        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            nonlocal new
            new = Cache(_write(old.keys, k, place), _write(old.values, v, place))
            return _attend_one(q, new, seen_T)

        x = nnx.merge(graph, weights)(x, cos_sin, attend, spec, compute)
        return x, new

    x = decoder.embed[...][tokens_B[:, None]].astype(compute.dtype)
    x, cache = jax.lax.scan(body, x, (stacked, cache))
    x = transformer.rms_norm(x, decoder.norm[...], spec.norm_eps)
    head = transformer.head_weights(params).astype(x.dtype)
    logits = jnp.einsum('btd,vd->btv', x, head, preferred_element_type=jnp.float32)
    return logits[:, 0], cache


def _seen(length: int, place: jax.Array, sliding_window: int | None) -> jax.Array:
    """Which places the token at `place` attends to, bool [T]."""
    index = jnp.arange(length)
    seen = index <= place
    return seen if sliding_window is None else seen & (place - index < sliding_window)


def _write(old_BTMH: jax.Array, new_B1MH: jax.Array, place: jax.Array) -> jax.Array:
    new = new_B1MH.astype(old_BTMH.dtype)
    return jax.lax.dynamic_update_slice_in_dim(old_BTMH, new, place, axis=1)


def _attend_one(q_B1NH: jax.Array, cache: Cache, seen_T: jax.Array) -> jax.Array:
    """Softmax attention of one query of each row, [B, 1, N, H]; softmax in float32."""
    batch, _, heads, width = q_B1NH.shape
    kv_heads = cache.keys.shape[2]
    q = (q_B1NH * width**-0.5).reshape(batch, kv_heads, heads // kv_heads, width)
    scores = jnp.einsum(
        'bmgh,btmh->bmgt', q, cache.keys, preferred_element_type=jnp.float32
    )
    scores = jnp.where(seen_T, scores, jnp.finfo(jnp.float32).min)
    probs = jax.nn.softmax(scores, axis=-1).astype(cache.values.dtype)
    out = jnp.einsum('bmgt,btmh->bmgh', probs, cache.values)
    return out.reshape(batch, 1, heads, width)
