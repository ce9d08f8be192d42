"""The backward pass of `flash`: one kernel for queries, one for keys and values.

Both compute the weights of attention anew from the scores and from what the forward pass
kept of each query, the logarithm of its softmax's denominator.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from epa_jax.models import flash_tiles as tiles
from epa_jax.models.block_map import Steps
from epa_jax.models.flash_tiles import Ref


def query_gradients(
    q_BNTH: jax.Array,
    k_BMTH: jax.Array,
    v_BMTH: jax.Array,
    dout_BNTH: jax.Array,
    norms: tuple[jax.Array, jax.Array],
    tokens_B8T: jax.Array,
    steps: Steps,
    *,
    block: int,
    sliding_window: int | None,
    interpret: bool,
) -> jax.Array:
    """Gradient of the scaled queries, [B, N, T, H] in their dtype.

    Args:
      q_BNTH: queries, scaled.
      k_BMTH: keys.
      v_BMTH: values.
      dout_BNTH: gradient of the output.
      norms: float32 [B, N, 1, T] each: log of the softmax's denominator, and the sum
        over H of the output times its gradient.
      tokens_B8T: from `flash_tiles.stack_tokens`.
      steps: from `block_map.by_query`.
      block: tokens of a block.
      sliding_window: as in `mask.sees`.
      interpret: run on any platform.
    """
    heads, width = q_BNTH.shape[1], q_BNTH.shape[3]
    groups = heads // k_BMTH.shape[1]
    own = tiles.head_tile(block, width, lambda n: n, 'query')
    shared = tiles.head_tile(block, width, lambda n: jax.lax.div(n, groups), 'key')
    row = tiles.row_tile(block, lambda n: n)
    (out,) = tiles.call(
        functools.partial(_query_kernel, sliding_window=sliding_window),
        (heads, steps.visited[0]),
        steps,
        [
            (tokens_B8T, tiles.token_tile(block, 'query')),
            (tokens_B8T, tiles.token_tile(block, 'key')),
            (q_BNTH, own),
            (k_BMTH, shared),
            (v_BMTH, shared),
            (dout_BNTH, own),
            (norms[0], row),
            (norms[1], row),
        ],
        [(jax.ShapeDtypeStruct(q_BNTH.shape, q_BNTH.dtype), own)],
        [(width, block)],
        name='shared_prompt_dq',
        interpret=interpret,
    )
    return out


def _query_kernel(
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
    dout: Ref,
    log_sum: Ref,
    mean: Ref,
    dq: Ref,
    total: Ref,
    *,
    sliding_window: int | None,
) -> None:
    step = pl.program_id(1)

    @pl.when(first[step] == 1)
    def start() -> None:
        total[...] = jnp.zeros_like(total)

    blocks = (query[step], key[step])
    s_KQ = tiles.scores(q[...], k[...], (tokens_Q, tokens_K), blocks, sliding_window)
    ds_KQ = _score_gradients(jnp.exp(s_KQ - log_sum[...]), v[...], dout[...], mean[...])
    total[...] += jax.lax.dot_general(
        k[...], ds_KQ.astype(k.dtype), tiles.TN, preferred_element_type=jnp.float32
    )

    @pl.when(last[step] == 1)
    def finish() -> None:
        dq[...] = total[...].T.astype(dq.dtype)


def _score_gradients(
    probs_KQ: jax.Array, v_KH: jax.Array, dout_QH: jax.Array, mean_1Q: jax.Array
) -> jax.Array:
    dprobs_KQ = jax.lax.dot_general(
        v_KH, dout_QH, tiles.NT, preferred_element_type=jnp.float32
    )
    return probs_KQ * (dprobs_KQ - mean_1Q)


def key_value_gradients(
    q_BNTH: jax.Array,
    k_BMTH: jax.Array,
    v_BMTH: jax.Array,
    dout_BNTH: jax.Array,
    norms: tuple[jax.Array, jax.Array],
    tokens_B8T: jax.Array,
    steps: Steps,
    *,
    block: int,
    sliding_window: int | None,
    interpret: bool,
) -> tuple[jax.Array, jax.Array]:
    """Gradients of keys and values, [B, M, T, H] each in their dtype.

    A block of keys stays while every block of queries that sees it passes by, for each of
    the query heads that share it.

    Args: as `query_gradients`, with steps from `block_map.by_key`.
    """
    heads, width = q_BNTH.shape[1], q_BNTH.shape[3]
    shared = k_BMTH.shape[1]
    groups = heads // shared
    theirs = tiles.head_tile(block, width, lambda m, g: m * groups + g, 'query')
    own = tiles.head_tile(block, width, lambda m, g: m, 'key')
    row = tiles.row_tile(block, lambda m, g: m * groups + g)
    dk, dv = tiles.call(
        functools.partial(_key_value_kernel, groups=groups, sliding_window=sliding_window),
        (shared, steps.visited[0], groups),
        steps,
        [
            (tokens_B8T, tiles.token_tile(block, 'query')),
            (tokens_B8T, tiles.token_tile(block, 'key')),
            (q_BNTH, theirs),
            (k_BMTH, own),
            (v_BMTH, own),
            (dout_BNTH, theirs),
            (norms[0], row),
            (norms[1], row),
        ],
        [(jax.ShapeDtypeStruct(x.shape, x.dtype), own) for x in (k_BMTH, v_BMTH)],
        [(block, width), (block, width)],
        name='shared_prompt_dkv',
        interpret=interpret,
    )
    return dk, dv


def _key_value_kernel(
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
    dout: Ref,
    log_sum: Ref,
    mean: Ref,
    dk: Ref,
    dv: Ref,
    total_k: Ref,
    total_v: Ref,
    *,
    groups: int,
    sliding_window: int | None,
) -> None:
    step, group = pl.program_id(1), pl.program_id(2)

    @pl.when((first[step] == 1) & (group == 0))
    def start() -> None:
        total_k[...] = jnp.zeros_like(total_k)
        total_v[...] = jnp.zeros_like(total_v)

    blocks = (query[step], key[step])
    s_KQ = tiles.scores(q[...], k[...], (tokens_Q, tokens_K), blocks, sliding_window)
    probs_KQ = jnp.exp(s_KQ - log_sum[...])
    ds_KQ = _score_gradients(probs_KQ, v[...], dout[...], mean[...])
    total_v[...] += jnp.dot(
        probs_KQ.astype(dout.dtype), dout[...], preferred_element_type=jnp.float32
    )
    total_k[...] += jnp.dot(
        ds_KQ.astype(q.dtype), q[...], preferred_element_type=jnp.float32
    )

    @pl.when((last[step] == 1) & (group == groups - 1))
    def finish() -> None:
        dk[...] = total_k[...].astype(dk.dtype)
        dv[...] = total_v[...].astype(dv.dtype)
