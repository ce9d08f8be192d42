"""Softmax attention in plain XLA, a block of queries at a time; only the mask is [T, T].

`causal` sets every block against all keys up to its end, in an unrolled loop. `spans` sets
it against the keys from the first to the last that any of its queries sees, in a loop that
chooses among a few sizes as it runs: of a packed row a query sees its own prompt alone.

Q is the queries of a block, G = N / M the query heads of a key head; other letters as in
`epa_jax.models.attention`.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from epa_jax.models.contract import product
from epa_jax.models.remat import saved

BLOCK = 256  # queries of a block of `causal`
MAX_BLOCKS = 8  # bounds the size of the compiled program
SPAN_BLOCK = 64  # queries of a block of `spans`, and the unit of its spans
SHORT = 128  # rows up to here have next to nothing to skip, and compile faster without


def causal(q: jax.Array, k: jax.Array, v: jax.Array, mask_BTT: jax.Array) -> jax.Array:
    """Blocks of queries against the keys up to their end, which halves the work.

    Args:
      q: [B, T, N, H].
      k: [B, T, M, H].
      v: [B, T, M, H].
      mask_BTT: bool [B, T, T], who looks and what is looked at; nothing that comes later.

    Returns:
      [B, T, N, H] in the dtype of the values; something finite for who sees nothing.
    """
    batch, length, heads, width = q.shape
    q, k, v = _by_head(q, k, v)
    block = max(BLOCK, -(-length // MAX_BLOCKS))
    out = []
    for start in range(0, length, block):
        end = min(start + block, length)
        out.append(
            _attend_block(
                q[:, :, :, start:end],
                k[:, :, :end],
                v[:, :, :end],
                mask_BTT[:, None, None, start:end, :end],
            )
        )
    joined = jnp.concatenate(out, axis=3).transpose(0, 3, 1, 2, 4)
    return joined.reshape(batch, length, heads, width)


class Spans(NamedTuple):
    """What `spans` knows of rows, the same for all layers.

    Attributes:
      mask: bool [B, T, T], as in `causal`.
      choices: int32 [B, T / Q], which of `span_sizes` each block of queries needs; None for
        rows that `causal` is to do: short ones, and lengths that blocks do not divide.
    """

    mask: jax.Array
    choices: jax.Array | None


def plan_spans(mask_BTT: jax.Array) -> Spans:
    """Finds the spans."""
    length = mask_BTT.shape[1]
    if length % SPAN_BLOCK or length <= SHORT:
        return Spans(mask_BTT, None)
    sizes = jnp.array(span_sizes(length // SPAN_BLOCK), jnp.int32)
    return Spans(mask_BTT, jnp.searchsorted(sizes, needed_blocks(mask_BTT)))


def spans(q: jax.Array, k: jax.Array, v: jax.Array, known: Spans) -> jax.Array:
    """Blocks of queries against the keys from the first that they see to themselves.

    Args:
      q: [B, T, N, H].
      k: [B, T, M, H].
      v: [B, T, M, H].
      known: of the rows.

    Returns:
      As `causal`.
    """
    if known.choices is None:
        return causal(q, k, v, known.mask)
    batch, length, heads, width = q.shape
    blocks = length // SPAN_BLOCK
    q, k, v = _by_head(q, k, v)
    q = q.reshape(*q.shape[:3], blocks, SPAN_BLOCK, width)
    q = jnp.moveaxis(q, 3, 1).reshape(batch * blocks, *q.shape[1:3], SPAN_BLOCK, width)
    out = _attend_spans(q, k, v, known.mask, known.choices.ravel())
    out = out.reshape(batch, blocks, *out.shape[1:]).transpose(0, 1, 4, 2, 3, 5)
    return out.reshape(batch, length, heads, width)


def span_sizes(blocks: int) -> list[int]:
    """Spans that are compiled, in blocks: at most a half longer than what is needed."""
    powers = [2**i for i in range(blocks.bit_length() + 1)]
    sizes = sorted({*powers, *(3 * p // 2 for p in powers)})
    return [size for size in sizes if size < blocks] + [blocks]


def needed_blocks(mask_BTT: jax.Array) -> jax.Array:
    """Blocks from the first that a block of queries sees to itself, int32 [B, T / Q]."""
    batch, length, _ = mask_BTT.shape
    own = jnp.arange(length)
    first = jnp.where(mask_BTT.any(axis=2), jnp.argmax(mask_BTT, axis=2), own)
    first = first.reshape(batch, -1, SPAN_BLOCK).min(axis=2) // SPAN_BLOCK
    return jnp.arange(length // SPAN_BLOCK) + 1 - first


def _by_head(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, ...]:
    """Scaled queries [B, M, G, T, H], keys and values [B, M, T, H]."""
    batch, length, heads, width = q.shape
    q = (q * width**-0.5).reshape(batch, length, -1, heads // k.shape[2], width)
    return q.transpose(0, 2, 3, 1, 4), k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)


@jax.custom_vjp
def _attend_spans(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, choices: jax.Array
) -> jax.Array:
    """Queries [B * T / Q, M, G, Q, H]; for each block the index of the size of its span."""
    return _spans_forward(q, k, v, mask, choices)[0]


def _spans_forward(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, choices: jax.Array
) -> tuple[jax.Array, tuple]:
    blocks = k.shape[2] // SPAN_BLOCK
    # else what depends on the mask alone is computed ahead, for all sizes, and kept
    queries, masks, which = jax.lax.optimization_barrier((q, mask, choices))

    def attend(size: int, place: jax.Array, q: jax.Array) -> tuple[jax.Array, jax.Array]:
        row, start = _corner(place, size, blocks)
        keys, values = (_cut(x, row, start, size) for x in (k, v))
        seen = _cut_mask(masks, row, place % blocks, start, size)
        out, log_sum = _block_forward(q[None], keys, values, seen)
        return out[0], log_sum[0]

    def step(_: None, at: tuple) -> tuple[None, tuple[jax.Array, jax.Array]]:
        choice, place, q = at
        branches = [functools.partial(attend, size) for size in span_sizes(blocks)]
        return None, jax.lax.switch(choice, branches, place, q)

    places = jnp.arange(len(q))
    _, found = jax.lax.scan(step, None, (which, places, queries))
    out, log_sums = map(saved, found)
    return out, (q, k, v, mask, choices, out, log_sums)


def _spans_backward(kept: tuple, dout: jax.Array) -> tuple:
    q, k, v, mask, choices, out, log_sums = kept
    blocks = k.shape[2] // SPAN_BLOCK

    def gradients(
        size: int, place: jax.Array, sums: tuple, of_block: Sequence[jax.Array]
    ) -> tuple[tuple, jax.Array]:
        row, start = _corner(place, size, blocks)
        keys, values = (_cut(x, row, start, size) for x in (k, v))
        seen = _cut_mask(mask, row, place % blocks, start, size)
        q, mean, log_sum, dout = (x[None] for x in of_block)
        dq, *found = _block_gradients((q, keys, values, seen, mean, log_sum), dout)
        more = [
            jax.lax.dynamic_update_slice(
                total, _cut(total, row, start, size) + part, (row, 0, start, 0)
            )
            for total, part in zip(sums, found, strict=True)
        ]
        return tuple(more), dq[0]

    def step(sums: tuple, at: tuple) -> tuple[tuple, jax.Array]:
        choice, place, *of_block = at
        branches = [functools.partial(gradients, size) for size in span_sizes(blocks)]
        return jax.lax.switch(choice, branches, place, sums, of_block)

    zeros = (jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32))
    places = jnp.arange(len(q))
    # before the loop: within it XLA would sum them again for every key
    means = _means(dout, out)
    (dk, dv), dq = jax.lax.scan(step, zeros, (choices, places, q, means, log_sums, dout))
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), None, None


_attend_spans.defvjp(_spans_forward, _spans_backward)


def _corner(place: jax.Array, size: int, blocks: int) -> tuple[jax.Array, jax.Array]:
    """Row and first key of the span of a block; near the row's start it ends later."""
    start = jnp.maximum(place % blocks + 1 - size, 0) * SPAN_BLOCK
    return place // blocks, start


def _cut(x_BMTH: jax.Array, row: jax.Array, start: jax.Array, size: int) -> jax.Array:
    _, heads, _, width = x_BMTH.shape
    shape = (1, heads, size * SPAN_BLOCK, width)
    return jax.lax.dynamic_slice(x_BMTH, (row, 0, start, 0), shape)


def _cut_mask(
    mask_BTT: jax.Array, row: jax.Array, block: jax.Array, start: jax.Array, size: int
) -> jax.Array:
    """Bool [1, 1, 1, Q, K]."""
    corner = (row, block * SPAN_BLOCK, start)
    cut = jax.lax.dynamic_slice(mask_BTT, corner, (1, SPAN_BLOCK, size * SPAN_BLOCK))
    return cut[:, None, None]


@jax.custom_vjp
def _attend_block(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Queries [B, M, G, Q, H] over keys [B, M, K, H]; nothing of [Q, K] is kept."""
    return _block_forward(q, k, v, mask)[0]


def _attend_block_forward(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array
) -> tuple[jax.Array, tuple]:
    out, log_sum = map(saved, _block_forward(q, k, v, mask))
    return out, (q, k, v, mask, out, log_sum)


def _scores(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum('bmgqh,bmkh->bmgqk', x, y, preferred_element_type=jnp.float32)


def _block_forward(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Output, and the log of the softmax's denominators."""
    scores = jnp.where(mask, _scores(q, k), jnp.finfo(jnp.float32).min)
    highest = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - highest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    summed = jnp.einsum(
        'bmgqk,bmkh->bmgqh', weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    out = (summed / total).astype(v.dtype)
    return out, highest + jnp.log(total)


def _block_gradients(kept: tuple, dout: jax.Array) -> tuple:
    """Of queries, and of keys and values in float32, which other blocks add to.

    The weights are computed anew, which is cheaper than to keep and read them.
    """
    q, k, v, mask, mean, log_sum = kept
    probs = jnp.where(mask, jnp.exp(_scores(q, k) - log_sum), 0.0)
    dscores = (probs * (_scores(dout, v) - mean)).astype(q.dtype)
    dq = product(dscores, 'bmgqk', k, 'bmkh', 'bmgqh')
    dk = product(dscores, 'bmgqk', q, 'bmgqh', 'bmkh', jnp.float32)
    dv = product(probs.astype(v.dtype), 'bmgqk', dout, 'bmgqh', 'bmkh', jnp.float32)
    return dq, dk, dv


def _means(dout: jax.Array, out: jax.Array) -> jax.Array:
    """Mean over the keys of what their scores would change: [..., 1]."""
    dout, out = dout.astype(jnp.float32), out.astype(jnp.float32)
    return jnp.sum(dout * out, axis=-1, keepdims=True)


def _block_backward(kept: tuple, dout: jax.Array) -> tuple:
    q, k, v, mask, out, log_sum = kept
    means = _means(dout, out)
    dq, dk, dv = _block_gradients((q, k, v, mask, means, log_sum), dout)
    return dq, dk.astype(dq.dtype), dv.astype(dq.dtype), None


_attend_block.defvjp(_attend_block_forward, _block_backward)
