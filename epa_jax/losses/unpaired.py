"""Losses that judge every response for itself, against a baseline of the whole batch.

a and b are log(pi / pi_ref) of the chosen response and of a strong negative, sums over
tokens. The baselines are of all prompts in the table, so these losses must be given the
table of a whole step; the training step does so (`LossDef.couples_prompts`).
"""

import jax
import jax.numpy as jnp

from epa_jax.losses.rewards import (
    chosen_value,
    keep,
    log_ratios,
    mean_over,
    rewards,
    role_masks,
)
from epa_jax.types import ResponseTable, WeightedSum


def kto(
    table: ResponseTable,
    *,
    beta: float = 0.1,
    weight_chosen: float = 1.0,
    weight_rejected: float = 1.0,
    baseline: str = 'weak',
) -> jax.Array:
    """Kahneman-Tversky Optimization.

    L = mean over own responses of
      weight_chosen * (1 - sigmoid(beta * (a - z)))      for the chosen
      weight_rejected * (1 - sigmoid(beta * (z - b)))    for each strong negative

    z estimates KL(pi || pi_ref) from responses to other prompts, without a gradient: the
    mean log-ratio of all WEAK responses of the batch, at least 0.

    Args:
      table: response table with a reference, of the whole step.
      beta: inverse temperature.
      weight_chosen: lambda_D of the paper.
      weight_rejected: lambda_U of the paper.
      baseline: 'weak', or 'zero' for z = 0 (then WEAK responses are not needed).

    Returns:
      float32 [N]; 0 for a prompt without CHOSEN.

    References:
      Ethayarajh et al., 2024, arXiv:2402.01306, Eq. 8. TRL and HALOs make the mismatched
      responses by rotating each micro-batch; here they are the drawn weak negatives.
    """
    masks = role_masks(table)
    ratio = log_ratios(table)
    z = _kl_baseline(ratio, masks.weak) if baseline == 'weak' else 0.0
    good = weight_chosen * jax.nn.sigmoid(-beta * (ratio - z))
    bad = weight_rejected * jax.nn.sigmoid(-beta * (z - ratio))
    return mean_over(jnp.where(masks.chosen, good, bad), masks.own)


def _kl_baseline(ratio: jax.Array, weak: jax.Array) -> jax.Array:
    mean = jnp.sum(keep(ratio, weak)) / jnp.maximum(jnp.sum(weak), 1)
    return jax.lax.stop_gradient(jax.nn.relu(mean))


def bco(
    table: ResponseTable,
    *,
    beta: float = 0.1,
    shift: str = 'running',
    carried: WeightedSum | None = None,
) -> jax.Array:
    """Binary Classifier Optimization.

    L = -log sigmoid(r_w - d) - mean over l of log sigmoid(-(r_l - d)),  r = beta * (a, b)

    Args:
      table: response table with a reference; of the whole step unless shift is 'none'.
      beta: inverse temperature.
      shift: d, without a gradient. 'running' is the mean reward of all own responses met
        so far, this batch included; 'batch' that of this batch; 'none' is 0 (TRL's and
        Liger's `bco_pair`).
      carried: with shift 'running', what `bco_rewards` summed over the run so far, this
        batch included; None is this batch alone.

    Returns:
      float32 [N]; 0 for a prompt without CHOSEN or REJECTED.

    References:
      Jung et al., 2024, arXiv:2404.04656, Eq. 9.
    """
    masks = role_masks(table)
    r = rewards(table, beta)
    d = jnp.zeros(())
    if shift != 'none':
        seen = bco_rewards(table, beta=beta)
        if shift == 'running' and carried is not None:
            seen = carried
        d = jax.lax.stop_gradient(seen.total / jnp.maximum(seen.weight, 1))
    good = jax.nn.softplus(-(chosen_value(r, masks)[:, 0] - d))
    some = jnp.any(masks.strong, axis=1)
    return keep(good + mean_over(jax.nn.softplus(r - d), masks.strong), some)


def bco_rewards(table: ResponseTable, *, beta: float = 0.1) -> WeightedSum:
    """Sum and number of the rewards of all own responses of a table."""
    own = role_masks(table).own
    total = jnp.sum(keep(rewards(table, beta), own))
    return WeightedSum(total, jnp.sum(own, dtype=jnp.float32))
