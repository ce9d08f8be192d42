"""Softmax attention in plain XLA, a block of queries at a time; only the mask is [T, T].

`causal` sets every block against all keys up to its end, in an unrolled loop; `spans` has
a loop that knows better. Nothing of [Q, K] is kept: the backward pass computes it again.

Q is the queries of a block, K the keys that they are set against, G = N / M the query heads
of a key head; other letters as in `epa_jax.models.attention`.
"""

import jax
import jax.numpy as jnp

from epa_jax.models.contract import product
from epa_jax.models.remat import saved

BLOCK = 256  # queries of a block
MAX_BLOCKS = 8  # bounds the size of the compiled program


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
    q, k, v = by_head(q, k, v)
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


def by_head(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, ...]:
    """Scaled queries [B, M, G, T, H], keys and values [B, M, T, H]."""
    batch, length, heads, width = q.shape
    q = (q * width**-0.5).reshape(batch, length, -1, heads // k.shape[2], width)
    return q.transpose(0, 2, 3, 1, 4), k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)


@jax.custom_vjp
def _attend_block(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Queries [B, M, G, Q, H] over keys [B, M, K, H]."""
    return block_forward(q, k, v, mask)[0]


def _attend_block_forward(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array
) -> tuple[jax.Array, tuple]:
    out, log_sum = map(saved, block_forward(q, k, v, mask))
    return out, (q, k, v, mask, out, log_sum)


def _scores(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum('bmgqh,bmkh->bmgqk', x, y, preferred_element_type=jnp.float32)


def block_forward(
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


def block_gradients(kept: tuple, dout: jax.Array) -> tuple:
    """Of queries, and of keys and values in float32, which other blocks add to.

    The weights are computed anew, which is cheaper than to keep and read them. `kept` is
    queries, keys, values, mask, `means`, and what `block_forward` gave beside its output.
    """
    q, k, v, mask, mean, log_sum = kept
    probs = jnp.where(mask, jnp.exp(_scores(q, k) - log_sum), 0.0)
    dscores = (probs * (_scores(dout, v) - mean)).astype(q.dtype)
    dq = product(dscores, 'bmgqk', k, 'bmkh', 'bmgqh')
    dk = product(dscores, 'bmgqk', q, 'bmgqh', 'bmkh', jnp.float32)
    dv = product(probs.astype(v.dtype), 'bmgqk', dout, 'bmgqh', 'bmkh', jnp.float32)
    return dq, dk, dv


def means(dout: jax.Array, out: jax.Array) -> jax.Array:
    """Mean over the keys of what their scores would change: [..., 1]."""
    dout, out = dout.astype(jnp.float32), out.astype(jnp.float32)
    return jnp.sum(dout * out, axis=-1, keepdims=True)


def _block_backward(kept: tuple, dout: jax.Array) -> tuple:
    q, k, v, mask, out, log_sum = kept
    dq, dk, dv = block_gradients((q, k, v, mask, means(dout, out), log_sum), dout)
    return dq, dk.astype(dq.dtype), dv.astype(dq.dtype), None


_attend_block.defvjp(_attend_block_forward, _block_backward)
