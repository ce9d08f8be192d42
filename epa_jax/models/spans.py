"""Softmax attention in plain XLA over the keys that a block of queries sees.

A response sees its prompt and itself, not the responses between; so a span of keys is two
stretches of a row with a gap between them. Spans differ in length: a loop over blocks of
queries chooses among a few lengths as it runs. Letters as in `epa_jax.models.query_blocks`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from epa_jax.models import query_blocks
from epa_jax.models.remat import saved

BLOCK = 64  # queries of a block; lengths of spans are multiples of it
SHORT = 128  # rows up to here have next to nothing to skip, and compile faster without


class Spans(NamedTuple):
    """The keys that each block of queries is set against, int32 [B, T / Q] each.

    Attributes:
      choices: n is the n-th of `lengths`; 0 where no query of the block sees a key, for
        which nothing is computed.
      firsts: where the first stretch begins.
      nears: keys of the first stretch, 0 where one stretch holds all that is seen.
      ends: where the second stretch ends.
    """

    choices: jax.Array
    firsts: jax.Array
    nears: jax.Array
    ends: jax.Array


class Known(NamedTuple):
    """What `attend` knows of rows, the same for all layers.

    Attributes:
      mask: bool [B, T, T], as in `query_blocks.causal`.
      spans: None for rows that `causal` is to do: short ones, and lengths that blocks do
        not divide.
    """

    mask: jax.Array
    spans: Spans | None


def plan(mask_BTT: jax.Array) -> Known:
    """Finds the spans: what is seen, without the longest gap in it.

    Args:
      mask_BTT: bool [B, T, T], as in `query_blocks.causal`; padding is to see nothing.
    """
    length = mask_BTT.shape[1]
    if length % BLOCK or length <= SHORT:
        return Known(mask_BTT, None)
    seen = mask_BTT.reshape(len(mask_BTT), -1, BLOCK, length).any(axis=2)
    first = jnp.argmax(seen, axis=-1)
    end = length - jnp.argmax(seen[..., ::-1], axis=-1)
    gap_end, gap = _longest_gap(seen)
    sizes = jnp.array(lengths(length))
    choice = jnp.searchsorted(sizes, end - first - gap)
    size = sizes[choice]
    near = jnp.where(size >= end - first, 0, gap_end - gap - first)
    choice = jnp.where(seen.any(axis=-1), choice + 1, 0)
    found = (choice, first, near, jnp.maximum(end, size))
    return Known(mask_BTT, Spans(*(x.astype(jnp.int32) for x in found)))


def attend(q: jax.Array, k: jax.Array, v: jax.Array, known: Known) -> jax.Array:
    """Blocks of queries against the spans of keys that they see.

    Args:
      q: [B, T, N, H].
      k: [B, T, M, H].
      v: [B, T, M, H].
      known: of the rows.

    Returns:
      As `query_blocks.causal`.
    """
    if known.spans is None:
        return query_blocks.causal(q, k, v, known.mask)
    batch, length, heads, width = q.shape
    blocks = length // BLOCK
    q, k, v = query_blocks.by_head(q, k, v)
    q = q.reshape(*q.shape[:3], blocks, BLOCK, width)
    q = jnp.moveaxis(q, 3, 1).reshape(batch * blocks, *q.shape[1:3], BLOCK, width)
    out = _attend(q, k, v, known.mask, Spans(*(x.ravel() for x in known.spans)))
    out = out.reshape(batch, blocks, *out.shape[1:]).transpose(0, 1, 4, 2, 3, 5)
    return out.reshape(batch, length, heads, width)


def lengths(row: int) -> list[int]:
    """Lengths of spans that are compiled: a block or a quarter longer than the last."""
    found = [BLOCK]
    while found[-1] < row:
        found.append(max(found[-1] + BLOCK, found[-1] * 5 // 4 // BLOCK * BLOCK))
    return [*found[:-1], row]


def _longest_gap(seen: jax.Array) -> tuple[jax.Array, jax.Array]:
    """End and length of the longest run of unseen keys between seen ones; [..., T]."""
    place = jnp.arange(seen.shape[-1])
    latest = jax.lax.cummax(jnp.where(seen, place, -1), axis=seen.ndim - 1)
    nothing = jnp.full_like(latest[..., :1], -1)
    before = jnp.concatenate([nothing, latest[..., :-1]], axis=-1)
    gaps = jnp.where(seen & (before >= 0), place - before - 1, 0)
    return jnp.argmax(gaps, axis=-1), jnp.max(gaps, axis=-1)


class _Place(NamedTuple):
    """Of a block of queries: its number among all rows', its span but for the length."""

    block: jax.Array
    first: jax.Array
    near: jax.Array
    end: jax.Array


@jax.custom_vjp
def _attend(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, spans: Spans
) -> jax.Array:
    """Queries [B * T / Q, M, G, Q, H], and spans in that order."""
    return _forward(q, k, v, mask, spans)[0]


def _forward(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, spans: Spans
) -> tuple[jax.Array, tuple]:
    sizes = lengths(k.shape[2])
    # else what depends on the mask alone is computed ahead, for all sizes, and kept
    queries, masks, (which, *where) = jax.lax.optimization_barrier((q, mask, spans))

    def one(size: int, place: _Place, q: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys, values = (_cut(x, size, place) for x in (k, v))
        seen = _cut_mask(masks, size, place)
        out, log_sum = query_blocks.block_forward(q[None], keys, values, seen)
        return out[0], log_sum[0]

    def none(_: _Place, q: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.zeros_like(q), jnp.zeros((*q.shape[:-1], 1), jnp.float32)

    branches: list[Callable] = [none, *(functools.partial(one, size) for size in sizes)]

    def step(_: None, at: tuple) -> tuple[None, tuple[jax.Array, jax.Array]]:
        choice, place, q = at
        return None, jax.lax.switch(choice, branches, place, q)

    places = _Place(jnp.arange(len(q)), *where)
    _, found = jax.lax.scan(step, None, (which, places, queries))
    out, log_sums = map(saved, found)
    return out, (q, k, v, mask, spans, out, log_sums)


def _backward(kept: tuple, dout: jax.Array) -> tuple:
    q, k, v, mask, (which, *where), out, log_sums = kept
    sizes = lengths(k.shape[2])

    def one(
        size: int, place: _Place, sums: tuple, of_block: Sequence[jax.Array]
    ) -> tuple[tuple, jax.Array]:
        keys, values = (_cut(x, size, place) for x in (k, v))
        seen = _cut_mask(mask, size, place)
        q, mean, log_sum, dout = (x[None] for x in of_block)
        known = (q, keys, values, seen, mean, log_sum)
        dq, *found = query_blocks.block_gradients(known, dout)
        more = (_add(*pair, place) for pair in zip(sums, found, strict=True))
        return tuple(more), dq[0]

    def none(_: _Place, sums: tuple, of_block: Sequence[jax.Array]) -> tuple:
        return sums, jnp.zeros_like(of_block[0])

    branches: list[Callable] = [none, *(functools.partial(one, size) for size in sizes)]

    def step(sums: tuple, at: tuple) -> tuple[tuple, jax.Array]:
        choice, place, *of_block = at
        return jax.lax.switch(choice, branches, place, sums, of_block)

    zeros = (jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32))
    places = _Place(jnp.arange(len(q)), *where)
    # before the loop: within it XLA would sum them again for every key
    means = query_blocks.means(dout, out)
    (dk, dv), dq = jax.lax.scan(step, zeros, (which, places, q, means, log_sums, dout))
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), None, None


_attend.defvjp(_forward, _backward)


def _cut(x_BMTH: jax.Array, size: int, place: _Place) -> jax.Array:
    """The span of a block, [1, M, K, H]."""
    _, heads, length, width = x_BMTH.shape
    row = place.block // (length // BLOCK)
    near, far = (
        jax.lax.dynamic_slice(x_BMTH, (row, 0, start, 0), (1, heads, size, width))
        for start in (place.first, place.end - size)
    )
    return jnp.where(_from_near(size, place)[:, None], near, far)


def _cut_mask(mask_BTT: jax.Array, size: int, place: _Place) -> jax.Array:
    """Bool [1, 1, 1, Q, K]."""
    row, block = jnp.divmod(place.block, mask_BTT.shape[1] // BLOCK)
    near, far = (
        jax.lax.dynamic_slice(mask_BTT, (row, block * BLOCK, start), (1, BLOCK, size))
        for start in (place.first, place.end - size)
    )
    return jnp.where(_from_near(size, place), near, far)[:, None, None]


def _add(total_BMTH: jax.Array, part: jax.Array, place: _Place) -> jax.Array:
    """Adds what a block gives to its span, the reverse of `_cut`."""
    size = part.shape[2]
    row = place.block // (total_BMTH.shape[2] // BLOCK)
    near = _from_near(size, place)[:, None]
    for start, own in ((place.first, near), (place.end - size, ~near)):
        corner = (row, 0, start, 0)
        sum_ = jax.lax.dynamic_slice(total_BMTH, corner, part.shape)
        sum_ += jnp.where(own, part, 0.0)
        total_BMTH = jax.lax.dynamic_update_slice(total_BMTH, sum_, corner)
    return total_BMTH


def _from_near(size: int, place: _Place) -> jax.Array:
    """Which keys of a span are the first stretch's, bool [K]."""
    return jnp.arange(size) < place.near
