"""Preference metrics of a response table, as sums and weights that are divided once.

Names and meanings are TRL's where TRL has the metric.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from epa_jax.losses.rewards import chosen_value, implicit_rewards, role_masks
from epa_jax.types import ResponseTable, WeightedSum


def preference_metrics(
    table: ResponseTable, loss_N: jax.Array, beta: float, per_token: bool = False
) -> dict[str, WeightedSum]:
    """Metrics of a batch, each a mean over the prompts that have what it is about.

    A prompt with several strong (or weak) negatives counts once, with their mean.

      loss                 of `loss_N`
      rewards/chosen       beta * (logps - ref_logps); beta * logps without a reference;
                           either divided by the length if the loss is about means
      rewards/rejected     the same of strong negatives
      rewards/weak         the same of weak negatives
      rewards/margins      chosen less the mean strong negative
      rewards/accuracies   fraction of strong negatives whose reward is below the chosen's;
                           a tie counts one half (TRL: zero), so that a policy equal to
                           its reference scores one half
      logps/ROLE           sum of log-probs over a response
      lengths/ROLE         scored tokens of a response

    Args:
      table: response table.
      loss_N: loss of each prompt, [N].
      beta: scale of the rewards; that of the loss.
      per_token: the loss is about means over tokens.

    Returns:
      Sums over prompts and their number, 0 for a role that no prompt has.
    """
    masks = role_masks(table)
    r = implicit_rewards(table, beta, per_token)
    r_chosen = chosen_value(r, masks)
    wins = jnp.where(r_chosen > r, 1.0, jnp.where(r_chosen == r, 0.5, 0.0))
    out = {
        'loss': _mean_over(masks.chosen, jnp.broadcast_to(loss_N[:, None], r.shape)),
        'rewards/margins': _mean_over(masks.strong, r_chosen - r),
        'rewards/accuracies': _mean_over(masks.strong, wins),
    }
    roles = {'chosen': masks.chosen, 'rejected': masks.strong, 'weak': masks.weak}
    values = {'rewards': r, 'logps': table.logps, 'lengths': table.lengths}
    for role, mask in roles.items():
        for name, value in values.items():
            out[f'{name}/{role}'] = _mean_over(mask, jnp.asarray(value, jnp.float32))
    return out


def finalise(sums: Mapping[str, WeightedSum]) -> dict[str, float]:
    """Divides every sum by its weight; leaves out those of weight 0, which say nothing."""
    fetched = jax.device_get(dict(sums))
    return {k: float(s.total / s.weight) for k, s in fetched.items() if s.weight > 0}


def _mean_over(mask: jax.Array, values: jax.Array) -> WeightedSum:
    """Sum over prompts of each one's mean over `mask`, [N, K] both."""
    count = jnp.sum(mask, axis=1)
    mean = jnp.sum(jnp.where(mask, values, 0.0), axis=1) / jnp.maximum(count, 1)
    return WeightedSum(jnp.sum(mean), jnp.sum(count > 0, dtype=jnp.float32))
