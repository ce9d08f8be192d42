"""Attention for rows with shared prompts as a Pallas kernel for TPUs.

Flash attention (arXiv:2205.14135, 2307.08691): the softmax is kept up to date block by
block of keys in float32, so no array of a row squared exists, forward or backward. Blocks
of keys that no query of a block may see - later ones, those of other prompts, of other
responses, or beyond the window - are on no list (`block_map`) and are neither loaded nor
computed. Query heads share key and value heads without copies.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from epa_jax.models import block_map, flash_backward
from epa_jax.models import flash_tiles as tiles
from epa_jax.models.block_map import Steps
from epa_jax.models.flash_tiles import Ref
from epa_jax.models.mask import Tokens
from epa_jax.models.remat import saved

LARGEST_BLOCK = 512  # tokens; smaller ones skip more, larger ones take fewer steps
LANES = 128  # a block is a multiple of a TPU's lanes


class Blocks(NamedTuple):
    """What the kernels need to know of rows; all layers of a model share it.

    Attributes:
      tokens: int32 [B, 8, T'], from `flash_tiles.stack_tokens`; T' is T padded.
      by_query: pairs of blocks in the order of queries.
      by_key: pairs of blocks in the order of keys.
    """

    tokens: jax.Array
    by_query: Steps
    by_key: Steps


def block_size(length: int) -> int:
    """Tokens of a block: equal parts of a row, none above 512, each a multiple of 128."""
    parts = -(-length // LARGEST_BLOCK)
    return -(-length // (parts * LANES)) * LANES


def plan_blocks(tokens: Tokens, sliding_window: int | None, block: int) -> Blocks:
    """Finds the blocks that have to be visited.

    Args:
      tokens: of the rows, of any length.
      sliding_window: as in `mask.sees`.
      block: tokens of a block, see `block_size`.
    """
    room = -tokens.segments.shape[1] % block
    tokens = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, room))), tokens)
    visits = block_map.visits(tokens, sliding_window, block)
    return Blocks(
        tiles.stack_tokens(tokens), block_map.by_query(visits), block_map.by_key(visits)
    )


def attend(
    q_BTNH: jax.Array,
    k_BTMH: jax.Array,
    v_BTMH: jax.Array,
    blocks: Blocks,
    *,
    block: int,
    sliding_window: int | None,
    interpret: bool = False,
) -> jax.Array:
    """Softmax attention by the rule of `mask.sees`; softmax and sums in float32.

    Padding is read by padding of its own block at least; what it gets is finite and
    means nothing.

    Args:
      q_BTNH: queries, N heads.
      k_BTMH: keys, M heads, M divides N.
      v_BTMH: values.
      blocks: from `plan_blocks`, with the same block and window.
      block: tokens of a block.
      sliding_window: positions seen; None sees all.
      interpret: run in Pallas's interpreter, on any platform and slowly.

    Returns:
      [B, T, N, H] in the dtype of the queries.
    """
    length, width = q_BTNH.shape[1], q_BTNH.shape[3]
    room = ((0, 0), (0, 0), (0, -length % block), (0, 0))
    q, k, v = (
        jnp.pad(x.transpose(0, 2, 1, 3), room)
        for x in (q_BTNH * width**-0.5, k_BTMH, v_BTMH)
    )
    out_BNTH = _flash(q, k, v, blocks, _Static(block, sliding_window, interpret))
    return out_BNTH[:, :, :length].transpose(0, 2, 1, 3)


class _Static(NamedTuple):
    block: int
    sliding_window: int | None
    interpret: bool


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _flash(
    q_BNTH: jax.Array,
    k_BMTH: jax.Array,
    v_BMTH: jax.Array,
    blocks: Blocks,
    static: _Static,
) -> jax.Array:
    return _forward(q_BNTH, k_BMTH, v_BMTH, blocks, static)[0]


def _forward(
    q_BNTH: jax.Array,
    k_BMTH: jax.Array,
    v_BMTH: jax.Array,
    blocks: Blocks,
    static: _Static,
) -> list[jax.Array]:
    rows, heads, length, width = q_BNTH.shape
    groups, block = heads // k_BMTH.shape[1], static.block
    own = tiles.head_tile(block, width, lambda n: n, 'query')
    shared = tiles.head_tile(block, width, lambda n: jax.lax.div(n, groups), 'key')
    log_sums = jax.ShapeDtypeStruct((rows, heads, 1, length), jnp.float32)
    return tiles.call(
        functools.partial(_kernel, sliding_window=static.sliding_window),
        (heads, blocks.by_query.visited[0]),
        blocks.by_query,
        [
            (blocks.tokens, tiles.token_tile(block, 'query')),
            (blocks.tokens, tiles.token_tile(block, 'key')),
            (q_BNTH, own),
            (k_BMTH, shared),
            (v_BMTH, shared),
        ],
        [
            (jax.ShapeDtypeStruct(q_BNTH.shape, q_BNTH.dtype), own),
            (log_sums, tiles.row_tile(block, lambda n: n)),
        ],
        [(1, block), (1, block), (width, block)],
        name='shared_prompt_attention',
        interpret=static.interpret,
    )


def _kernel(
    row: Ref,
    query: Ref,
    key: Ref,
    first: Ref,
    last: Ref,
    tokens_Q: Ref,
    tokens_K: Ref,
    q: Ref,
    k: Ref,
    v: Ref,
    out: Ref,
    log_sum: Ref,
    highest: Ref,
    total: Ref,
    weighted: Ref,
    *,
    sliding_window: int | None,
) -> None:
    step = pl.program_id(1)

    @pl.when(first[step] == 1)
    def start() -> None:
        highest[...] = jnp.full_like(highest, tiles.MASKED)
        total[...] = jnp.zeros_like(total)
        weighted[...] = jnp.zeros_like(weighted)

    blocks = (query[step], key[step])
    s_KQ = tiles.scores(q[...], k[...], (tokens_Q, tokens_K), blocks, sliding_window)
    old_1Q = highest[...]
    # a query that has seen nothing yet adds weights of 1, which its own token, seen in
    # the last of its blocks at the latest, scales by exp(MASKED) = 0
    new_1Q = jnp.maximum(old_1Q, jnp.max(s_KQ, axis=0, keepdims=True))
    probs_KQ = jnp.exp(s_KQ - new_1Q)
    shrink_1Q = jnp.exp(old_1Q - new_1Q)
    highest[...] = new_1Q
    total[...] = shrink_1Q * total[...] + jnp.sum(probs_KQ, axis=0, keepdims=True)
    weighted[...] = shrink_1Q * weighted[...] + jax.lax.dot_general(
        v[...], probs_KQ.astype(v.dtype), tiles.TN, preferred_element_type=jnp.float32
    )

    @pl.when(last[step] == 1)
    def finish() -> None:
        out[...] = (weighted[...] / total[...]).T.astype(out.dtype)
        log_sum[...] = highest[...] + jnp.log(total[...])


def _flash_forward(
    q: jax.Array, k: jax.Array, v: jax.Array, blocks: Blocks, static: _Static
) -> tuple[jax.Array, tuple]:
    out, log_sum = map(saved, _forward(q, k, v, blocks, static))
    return out, (q, k, v, blocks, out, log_sum)


def _flash_backward(static: _Static, kept: tuple, dout: jax.Array) -> tuple:
    q, k, v, blocks, out, log_sum = kept
    mean = jnp.sum(out.astype(jnp.float32) * dout.astype(jnp.float32), axis=-1)
    norms = (log_sum, mean[:, :, None, :])
    inputs = (q, k, v, dout, norms, blocks.tokens)
    static_args = static._asdict()
    dq = flash_backward.query_gradients(*inputs, blocks.by_query, **static_args)
    dk, dv = flash_backward.key_value_gradients(*inputs, blocks.by_key, **static_args)
    return dq, dk, dv, None


_flash.defvjp(_flash_forward, _flash_backward)
