"""Energy-based losses: the chosen response against all others at once."""

import jax
import jax.numpy as jnp

from epa_jax.losses.rewards import chosen_value, keep, rewards, role_masks
from epa_jax.types import ResponseTable, Role


def epa(
    table: ResponseTable,
    *,
    beta: float = 0.1,
    margin: float = 0.0,
    weight_strong: float = 1.0,
    weight_weak: float = 1.0,
) -> jax.Array:
    """Energy Preference Alignment.

    L = -r_w + log(exp(r_w) + w_s * sum_strong exp(r_s + m) + w_k * sum_weak exp(r_k))

    with r = beta * (logps - ref_logps), sums over tokens, never means. One strong and no
    weak negative give DPO; without weak negatives and margin it is one-hot InfoNCA.

    A table with `log_q` asks for the correction of sampled softmax: every r (that of the
    chosen response too) is lessened by the log of the rate at which such a response is
    drawn. Without it the population's minimiser is r = log(p_chosen / q) + c(x), with it
    r = log p_chosen + c(x), whatever the negatives are drawn from.

    Args:
      table: response table with a reference.
      beta: inverse temperature.
      margin: m, nats, added to the rewards of strong negatives only.
      weight_strong: w_s.
      weight_weak: w_k.

    Returns:
      float32 [N], loss of each prompt; 0 for one without CHOSEN or without negatives.

    References:
      Energy-Based Preference Model Offers Better Offline Alignment than the
      Bradley-Terry Preference Model, 2024, arXiv:2412.13862 (the energy preference
      alignment loss; the margin is that of its study of loss modifications).
    """
    masks = role_masks(table)
    r = rewards(table, beta)
    if table.log_q is not None:
        r -= keep(table.log_q, jnp.asarray(table.roles) != Role.PAD)
    gap = r - chosen_value(r, masks)
    gap += jnp.where(masks.strong, margin, 0.0)
    weights = masks.strong * weight_strong + masks.weak * weight_weak
    return softplus_sum_exp(gap, weights)


def ipm(table: ResponseTable, *, beta: float = 0.1) -> jax.Array:
    """Negative log-likelihood of the Infinite Preference Model.

    L = -r_w + log sum_y exp(r(y)),  r = beta * (logps - ref_logps)

    over every response of the table, which should be the whole response space: then this
    is the exact likelihood, whose maximum exists, is unique, and lies on the slope-1 line.
    On a sample of responses it is `epa` with weights 1.

    Args:
      table: response table with a reference; all roles but PAD count alike.
      beta: inverse temperature.

    Returns:
      float32 [N]; 0 for a prompt without CHOSEN or with no other response.

    References:
      arXiv:2412.13862, Theorem 3.1.
    """
    masks = role_masks(table)
    r = rewards(table, beta)
    others = masks.strong | masks.weak
    return softplus_sum_exp(r - chosen_value(r, masks), others.astype(jnp.float32))


def softplus_sum_exp(x: jax.Array, weights: jax.Array) -> jax.Array:
    """log(1 + sum_k w_k exp(x_k)) along the last axis, without overflow.

    Exactly softplus(x_k) when one weight is 1 and the others are 0; exactly 0, with zero
    gradient, when all weights are 0.
    """
    used = weights > 0
    some = jnp.any(used, axis=-1, keepdims=True)
    # A row of -inf only would be 0 / 0 in logsumexp's backward pass: it gets zeros.
    terms = jnp.where(used, x + jnp.log(jnp.where(used, weights, 1.0)), -jnp.inf)
    terms = jnp.where(some, terms, 0.0)
    total = jax.nn.softplus(jax.nn.logsumexp(terms, axis=-1))
    return jnp.where(some[..., 0], total, 0.0)
