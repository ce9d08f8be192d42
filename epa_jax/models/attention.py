"""Attention over packed rows: one mask rule, chosen back end."""

import jax
import jax.numpy as jnp

from epa_jax.models.contract import contract

BLOCK = 256  # queries per block
MAX_BLOCKS = 8  # bounds the size of the compiled program


def visible(
    positions_BT: jax.Array,
    segments_BT: jax.Array,
    branches_BT: jax.Array,
    sliding_window: int | None,
) -> jax.Array:
    """Which tokens (last axis) each token (middle axis) of a row attends to.

    A token sees itself and earlier tokens of its segment that are of the prompt or of
    its own branch. A sliding window counts positions, which restart for each response,
    so a response sees as much of its prompt as it would alone.

    Args:
      positions_BT: int32 [B, T].
      segments_BT: int32 [B, T]; 0 is padding, which sees only padding.
      branches_BT: int32 [B, T]; 0 is the prompt.
      sliding_window: positions seen, the token itself included; None sees all.

    Returns:
      bool [B, T, T].
    """
    index = jnp.arange(segments_BT.shape[1])
    mask = index[:, None] >= index[None, :]
    mask = mask & (segments_BT[:, :, None] == segments_BT[:, None, :])
    mask &= (branches_BT[:, None, :] == 0) | (
        branches_BT[:, :, None] == branches_BT[:, None, :]
    )
    if sliding_window is not None:
        mask &= positions_BT[:, :, None] - positions_BT[:, None, :] < sliding_window
    return mask


def attend(
    q_BTNH: jax.Array,
    k_BTMH: jax.Array,
    v_BTMH: jax.Array,
    mask_BTT: jax.Array,
    backend: str,
) -> jax.Array:
    """Softmax attention with grouped key and value heads; softmax in float32.

    Args:
      q_BTNH: queries, N heads.
      k_BTMH: keys, M heads, M divides N.
      v_BTMH: values.
      mask_BTT: bool, True where attention is allowed; never to a later token, and at
        least one token of each row.
      backend: 'xla', or 'auto', which today is XLA on every platform.

    Returns:
      [B, T, N, H] in the dtype of the queries.

    Raises:
      ValueError: an unknown back end.
    """
    if backend not in ('auto', 'xla'):
        raise ValueError(f'attention back end {backend!r}: expected auto or xla')
    return _blocked(q_BTNH, k_BTMH, v_BTMH, mask_BTT)


def _blocked(q: jax.Array, k: jax.Array, v: jax.Array, mask_BTT: jax.Array) -> jax.Array:
    """Blocks of queries against the keys up to their end, which halves the work."""
    batch, length, heads, width = q.shape
    groups = heads // k.shape[2]
    q = (q * width**-0.5).reshape(batch, length, -1, groups, width)
    q = q.transpose(0, 2, 3, 1, 4)  # [B, M, N / M, T, H]
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
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


def _attend_block(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    scores = contract('bmgqh,bmkh->bmgqk', q, k, jnp.float32)
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    probs = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return contract('bmgqk,bmkh->bmgqh', probs, v)
