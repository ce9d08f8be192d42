"""Which tokens of a packed row see which: the one rule that every back end follows."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Tokens(NamedTuple):
    """What attention knows of the tokens of rows, int32 [B, T] each.

    Attributes:
      positions: within the sequence that a token would be in alone.
      segments: 0 is padding, 1 .. G a prompt with its responses.
      branches: 0 is the prompt, 1 .. K a response; None where no prompt has two
        responses, so that every segment is one sequence.
    """

    positions: jax.Array
    segments: jax.Array
    branches: jax.Array | None = None


def sees(
    index_Q: jax.Array,
    query: Tokens,
    index_K: jax.Array,
    key: Tokens,
    sliding_window: int | None,
) -> jax.Array:
    """Whether tokens attend to tokens, over arrays that broadcast against each other.

    A token sees itself and earlier tokens of its segment that are of the prompt or of
    its own branch. A sliding window counts positions, which restart for each response,
    so a response sees as much of its prompt as it would alone. Padding sees only
    padding.

    Args:
      index_Q: int32, places in the row of those that look.
      query: what is known of them.
      index_K: int32, places in the same row of those looked at.
      key: what is known of them.
      sliding_window: positions seen, the token itself included; None sees all.
    """
    mask = (index_Q >= index_K) & (query.segments == key.segments)
    if query.branches is not None and key.branches is not None:
        mask &= (key.branches == 0) | (query.branches == key.branches)
    if sliding_window is not None:
        mask &= query.positions - key.positions < sliding_window
    return mask


def visible(tokens: Tokens, sliding_window: int | None) -> jax.Array:
    """The rule for all pairs of each row, bool [B, T, T]: who looks, what is looked at."""
    index = jnp.arange(tokens.segments.shape[1])
    query = jax.tree.map(lambda x: x[:, :, None], tokens)
    key = jax.tree.map(lambda x: x[:, None, :], tokens)
    return sees(index[:, None], query, index[None, :], key, sliding_window)
