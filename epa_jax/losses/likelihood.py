"""Likelihood losses: no preference, only the chosen response."""

import jax

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
    return -chosen_value(table.logps, role_masks(table))[:, 0]
