"""Which blocks of keys a block of queries has to visit, as lists that a kernel follows.

Rows are cut into n blocks of equal size. A list of steps holds the pairs of blocks
between which some token sees another, and no pair more, apart from padding. Whether a
pair is on it is asked of the mask rule itself for every two tokens, once in a forward
pass: some ten integer operations, where attention in 32 layers of 32 heads of width 128
takes half a million.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from epa_jax.models.mask import Tokens, sees


class Lists(NamedTuple):
    """Pairs of blocks, those of one output block next to each other.

    Attributes:
      row: int32 [S], of each pair.
      query: int32 [S], block of queries.
      key: int32 [S], block of keys.
      first: int32 [S], 1 where an output block begins.
      last: int32 [S], 1 where it ends.
    """

    row: jax.Array
    query: jax.Array
    key: jax.Array
    first: jax.Array
    last: jax.Array


class Steps(NamedTuple):
    """What a kernel does one after another.

    Attributes:
      visited: int32 [1], pairs to visit; the lists' entries from there on mean nothing.
      lists: the pairs.
    """

    visited: jax.Array
    lists: Lists


def visits(tokens: Tokens, sliding_window: int | None, block: int) -> jax.Array:
    """Pairs of blocks between which a token that is no padding sees another.

    Every block also visits itself, so that padding has something to attend to.

    Args:
      tokens: of rows whose length T is a multiple of `block`.
      sliding_window: as in `mask.sees`.
      block: tokens of a block.

    Returns:
      bool [B, n, n], n = T / block: blocks of queries by blocks of keys.
    """
    rows, length = tokens.segments.shape
    blocks = length // block
    index = jnp.arange(length)
    key = jax.tree.map(lambda x: x[:, None, :], tokens)

    def of_queries(i: jax.Array) -> jax.Array:
        def cut(x: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(x, i * block, block, axis=-1)[..., None]

        query = jax.tree.map(cut, tokens)
        seen = sees(cut(index), query, index, key, sliding_window)
        seen &= query.segments != 0
        return jnp.any(seen.reshape(rows, block, blocks, block), axis=(1, 3))

    # one block of queries at a time: no array is as large as a row squared
    found = jax.lax.map(of_queries, jnp.arange(blocks)).transpose(1, 0, 2)
    return found | jnp.eye(blocks, dtype=bool)


def by_query(visits_BQK: jax.Array) -> Steps:
    """The pairs in the order of the blocks of queries, as outputs of attention."""
    visited, row, query, key, *flags = _list(visits_BQK)
    return Steps(visited, Lists(row, query, key, *flags))


def by_key(visits_BQK: jax.Array) -> Steps:
    """The pairs in the order of the blocks of keys, as gradients of keys and values."""
    visited, row, key, query, *flags = _list(visits_BQK.transpose(0, 2, 1))
    return Steps(visited, Lists(row, query, key, *flags))


def _list(visits: jax.Array) -> tuple[jax.Array, ...]:
    rows, blocks, _ = visits.shape
    size = rows * blocks * (blocks + 1) // 2  # no block sees a later one
    found = jnp.nonzero(visits, size=size, fill_value=0)
    row, outer, inner = (x.astype(jnp.int32) for x in found)
    count = jnp.sum(visits, dtype=jnp.int32)
    run = row * blocks + outer
    border = jnp.concatenate([jnp.ones(1, bool), run[1:] != run[:-1], jnp.ones(1, bool)])
    last = border[1:] | (jnp.arange(size) == count - 1)
    flags = (x.astype(jnp.int32) for x in (border[:-1], last))
    return count[None], row, outer, inner, *flags
