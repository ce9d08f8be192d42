"""Pairwise losses: the chosen response against each strong negative."""

import jax
import jax.numpy as jnp

from epa_jax.losses.rewards import Masks, chosen_value, rewards, role_masks
from epa_jax.types import ResponseTable


def dpo(
    table: ResponseTable,
    *,
    beta: float = 0.1,
    margin: float = 0.0,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """Direct Preference Optimization, with a margin or conservative labels if wanted.

    L = mean over l of -(1 - e) * log sigmoid(h_l) - e * log sigmoid(-h_l)
    h_l = r_w - r_l - m

    with r = beta * (logps - ref_logps), sums over tokens, never means, and l the
    REJECTED responses: with several, every pair with the chosen one counts and a prompt's
    pairs are averaged. WEAK responses are ignored.

    Args:
      table: response table with a reference.
      beta: inverse temperature.
      margin: m, nats.
      label_smoothing: e, probability that the label of a pair is wrong.

    Returns:
      float32 [N], loss of each prompt; 0 for one without CHOSEN or REJECTED.

    References:
      Rafailov et al., 2023, arXiv:2305.18290, Eq. 7; label smoothing: Mitchell, A note
      on DPO with noisy preferences, 2023; margin: arXiv:2412.13862.
    """
    masks = role_masks(table)
    r = rewards(table, beta)
    h = jnp.where(masks.strong, chosen_value(r, masks) - r - margin, 0.0)
    loss = (1 - label_smoothing) * jax.nn.softplus(-h)
    loss += label_smoothing * jax.nn.softplus(h)
    return mean_over_strong(loss, masks)


def mean_over_strong(values: jax.Array, masks: Masks) -> jax.Array:
    """Mean of [N, K] over each prompt's strong negatives, [N]; 0 without any."""
    count = jnp.sum(masks.strong, axis=1)
    return jnp.sum(jnp.where(masks.strong, values, 0.0), axis=1) / jnp.maximum(count, 1)
