"""Attention over packed rows: one mask rule, chosen back end."""

import jax
import jax.numpy as jnp


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
      mask_BTT: bool, True where attention is allowed.
      backend: 'xla', or 'auto', which today is XLA on every platform.

    Returns:
      [B, T, N, H] in the dtype of the queries.

    Raises:
      ValueError: an unknown back end.
    """
    if backend not in ('auto', 'xla'):
        raise ValueError(f'attention back end {backend!r}: expected auto or xla')
    return jax.nn.dot_product_attention(
        q_BTNH, k_BTMH, v_BTMH, mask=mask_BTT[:, None], implementation='xla'
    )
