"""Splash attention, the kernel for TPUs that comes with JAX, where it can say our mask.

Its mask is a static one (causal, or a causal window of places in the row) and equal
segments. With one response a prompt that is our rule: every segment is one sequence whose
positions count its places. With several it is not: a response sees its prompt and
itself but no other response, which is no equality of two numbers. Splash also takes a
mask made on the device, but as a dense array for every head, and does not differentiate
the log-sums by which two passes (own branch, prompt) could be joined. Rows with shared
prompts therefore go to `flash`, which also skips the blocks of other segments, where
splash skips only what its static mask rules out.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)

from epa_jax.models.mask import Tokens
from epa_jax.models.remat import SAVED


def attend(
    q_BTNH: jax.Array,
    k_BTMH: jax.Array,
    v_BTMH: jax.Array,
    tokens: Tokens,
    *,
    block: int,
    sliding_window: int | None,
    interpret: bool = False,
) -> jax.Array:
    """Softmax attention within segments; letters and result as in `flash.attend`.

    Args:
      q_BTNH: queries.
      k_BTMH: keys.
      v_BTMH: values.
      tokens: of the rows, without branches; positions must grow by one within a segment.
      block: tokens of a block, a multiple of 128.
      sliding_window: positions seen; None sees all.
      interpret: run in Pallas's interpreter, on any platform and slowly.

    Raises:
      ValueError: tokens with branches.
    """
    if tokens.branches is not None:
        raise ValueError('splash attention cannot express rows with shared prompts')
    heads, width = q_BTNH.shape[2:]
    length = q_BTNH.shape[1]
    room = -length % block
    q, k, v = (
        jnp.pad(x.transpose(0, 2, 1, 3), ((0, 0), (0, 0), (0, room), (0, 0)))
        for x in (q_BTNH * width**-0.5, k_BTMH, v_BTMH)
    )
    segments = jnp.pad(tokens.segments, ((0, 0), (0, room)))
    kernel = _kernel(length + room, heads, block, sliding_window, interpret)
    ids = splash_attention_kernel.SegmentIds(segments, segments)
    out_BNTH: Any = jax.vmap(kernel)(q, k, v, ids)
    return out_BNTH[:, :, :length].transpose(0, 2, 1, 3)


def _kernel(
    length: int, heads: int, block: int, sliding_window: int | None, interpret: bool
) -> splash_attention_kernel.SplashAttentionKernel:
    shape = (length, length)
    mask: splash_attention_mask.Mask
    if sliding_window is None:
        mask = splash_attention_mask.CausalMask(shape)
    else:
        mask = splash_attention_mask.LocalMask(shape, (sliding_window - 1, 0), offset=0)
    return splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([mask] * heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=splash_attention_kernel.BlockSizes(
            block_q=block,
            block_kv=block,
            block_kv_compute=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_kv_dkv_compute=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        residual_checkpoint_name=SAVED,
        interpret=interpret,
    )
