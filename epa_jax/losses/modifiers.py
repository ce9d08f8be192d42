"""What may be done to any loss: changes of the table before it, terms and weights after.

Each is a pure function of a table. `make` decides which losses each may be used with.
"""

import dataclasses

import jax
import jax.numpy as jnp

from epa_jax.losses.numerics import capped_exp, inverse_power
from epa_jax.losses.rewards import chosen_value, keep, log_ratios, mean_over, role_masks
from epa_jax.types import ResponseTable

DIVERGENCES = ('reverse_kl', 'forward_kl', 'js', 'alpha')


def drop_reference(table: ResponseTable) -> ResponseTable:
    """The table with a reference of probability 1 everywhere: log-ratios are log-probs."""
    return dataclasses.replace(table, ref_logps=jnp.zeros_like(table.logps))


def use_divergence(table: ResponseTable, divergence: str, alpha: float) -> ResponseTable:
    """Replaces each log-ratio by f'(pi / pi_ref), for another regulariser than KL.

    With u = pi / pi_ref: reverse_kl log u (no change); forward_kl -1 / u; js
    log(2u / (1 + u)); alpha (1 - u^-alpha) / alpha. Powers are continued linearly from
    e^30 on.

    Args:
      table: response table with a reference.
      divergence: one of `DIVERGENCES`.
      alpha: of 'alpha', between 0 (reverse KL) and 1 (forward KL).

    References:
      Wang et al., Beyond Reverse KL, 2023, arXiv:2309.16240, Table 1.
    """
    log_u = log_ratios(table)
    if divergence == 'forward_kl':
        value = -capped_exp(-log_u)
    elif divergence == 'js':
        value = jnp.log(2.0) - jax.nn.softplus(-log_u)
    elif divergence == 'alpha':
        value = inverse_power(log_u, alpha)
    else:
        value = log_u
    return dataclasses.replace(table, logps=value, ref_logps=jnp.zeros_like(value))


def add_rating_margin(
    table: ResponseTable, scale: float, per_token: bool = False
) -> ResponseTable:
    """Asks for a reward gap that grows with the gap of ratings.

    Adds scale * (rating_chosen - rating_k) to the log-prob of strong negative k, times
    its length for losses of means over tokens.

    Args:
      table: response table with ratings.
      scale: nats of log-prob for one point of rating; divided by beta, nats of reward.
      per_token: the loss divides log-probs by lengths.

    Raises:
      ValueError: the table has no ratings.

    References:
      Touvron et al., Llama 2, 2023, arXiv:2307.09288, Sec. 3.2.2; Amini et al., ODPO,
      2024, arXiv:2402.10571.
    """
    if table.ratings is None:
        raise ValueError(
            'loss.rating_margin needs ratings and the table has none; use rated data, or '
            'loss.margin where the loss takes it'
        )
    masks = role_masks(table)
    gap = chosen_value(table.ratings, masks) - keep(table.ratings, masks.strong)
    margin = keep(scale * gap, masks.strong)
    if per_token:
        margin *= jnp.maximum(table.lengths, 1)
    return dataclasses.replace(table, logps=table.logps + margin)


def wpo_weight(table: ResponseTable) -> jax.Array:
    """Weight of each prompt, [N], without a gradient: how on-policy its responses are.

    w = mean over strong negatives l of min(1, v_chosen * v_l),
    v = exp(mean over tokens of (log pi(y_t) - log sum_u pi(u)^2))

    For K = 2 TRL's `use_weighting`; 1 at most, as there.

    Args:
      table: response table with `log_collision`.

    References:
      Zhou et al., WPO, 2024, arXiv:2406.11827, Eq. 6 (sampled alignment).
    """
    if table.log_collision is None:
        raise ValueError(
            'loss.wpo needs log_collision and the table has none; make it with '
            'logprobs.response_table(..., collision=True)'
        )
    masks = role_masks(table)
    mean_logps = keep(table.logps, masks.own) / jnp.maximum(table.lengths, 1)
    log_v = mean_logps - keep(table.log_collision, masks.own)
    weights = jnp.exp(jnp.minimum(chosen_value(log_v, masks) + log_v, 0.0))
    return jax.lax.stop_gradient(mean_over(weights, masks.strong))
