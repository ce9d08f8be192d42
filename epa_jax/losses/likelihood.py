"""Likelihood losses: no preference, only the chosen response."""

import jax
import jax.numpy as jnp

from epa_jax.losses.rewards import chosen_value, role_masks
from epa_jax.types import ResponseTable


def sft(table: ResponseTable) -> jax.Array:
    """Negative log-likelihood of the chosen response.

    L = -log pi(y_w|x), the sum over response tokens, not their mean.

    Args:
      table: response table; a reference is not needed and not used.

    Returns:
      float32 [N], loss of each prompt, nats; 0 for one without CHOSEN.
    """
    return chosen_nll(table, 'sum')


def chosen_nll(table: ResponseTable, tokens: str) -> jax.Array:
    """-log pi(y_w|x), [N]: the 'sum' or the 'mean' over the response's tokens.

    TRL's token mean is over a whole micro-batch; this one is of each response, so the
    batch's composition does not matter.
    """
    masks = role_masks(table)
    nll = -chosen_value(table.logps, masks)[:, 0]
    if tokens == 'sum':
        return nll
    return nll / jnp.maximum(chosen_value(table.lengths, masks)[:, 0], 1)
