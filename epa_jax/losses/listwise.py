"""Listwise losses: all K responses of a prompt at once, by rating.

r = beta * (logps - ref_logps), sums over tokens. They are about the prompt's own
responses, chosen and strong negatives; WEAK responses are ignored. All return float32
[N], 0 for a prompt without strong negatives.
"""

import jax
import jax.numpy as jnp

from epa_jax.losses.rewards import Masks, chosen_value, keep, rewards, role_masks
from epa_jax.types import ResponseTable


def pl_dpo(table: ResponseTable, *, beta: float = 0.1) -> jax.Array:
    """DPO for rankings, by the Plackett-Luce model.

    L = -sum_i (r_i - log sum_{j: rating_j <= rating_i} exp(r_j))

    over the responses i that are above another one. Ties share a denominator (Breslow's
    form), so the order of responses does not matter; the lowest are not ranked among
    themselves. Without ratings the chosen response is above all others. K = 2 is DPO; of
    two responses rated alike it learns nothing.

    Args:
      table: response table with a reference; ratings when K > 2.
      beta: inverse temperature.

    References:
      Rafailov et al., 2023, arXiv:2305.18290, Appendix A.3.
    """
    masks = role_masks(table)
    r = rewards(table, beta)
    level = _levels(table, masks)
    not_above = level[:, None, :] <= level[:, :, None]  # [n, i, j]: j is not above i
    ranked = masks.own & (level > _lowest(level, masks))
    # Differences first: float32 keeps their digits, also where rewards are large.
    gaps = r[:, None, :] - r[:, :, None]
    terms = jnp.where(not_above & masks.own[:, None, :], gaps, -jnp.inf)
    terms = jnp.where(ranked[:, :, None], terms, 0.0)
    return jnp.sum(keep(jax.nn.logsumexp(terms, axis=2), ranked), axis=1)


def infonca(
    table: ResponseTable, *, beta: float = 0.1, rating_temperature: float = 1e-4
) -> jax.Array:
    """InfoNCA: the softmax of rewards towards the softmax of ratings.

    L = -sum_k s_k log softmax(r)_k,  s = softmax(rating / rating_temperature)

    Args:
      table: response table with a reference, and ratings unless the temperature is 0.
      beta: inverse temperature of the rewards.
      rating_temperature: alpha of the paper; 0 is its limit, all weight on the chosen
        response, which for K = 2 is DPO.

    References:
      Chen et al., 2024, arXiv:2402.05369, Eq. 7.
    """
    masks = role_masks(table)
    r = rewards(table, beta)
    r -= chosen_value(r, masks)  # the loss is of differences: keeps their digits
    targets = _targets(table, masks, rating_temperature)
    some = jnp.any(masks.strong, axis=1)
    terms = jnp.where(some[:, None], jnp.where(masks.own, r, -jnp.inf), 0.0)
    log_total = jax.nn.logsumexp(terms, axis=1)
    return keep(log_total - jnp.sum(targets * keep(r, masks.own), axis=1), some)


def nca(
    table: ResponseTable, *, beta: float = 0.1, rating_temperature: float = 1e-4
) -> jax.Array:
    """NCA: noise-contrastive alignment, which also holds rewards up in absolute terms.

    L = -sum_k s_k log sigmoid(r_k) - mean_k log sigmoid(-r_k)

    with s as in `infonca`. For K = 2 and temperature 0 it is TRL's `nca_pair`.

    Args:
      table: response table with a reference, and ratings unless the temperature is 0.
      beta: inverse temperature of the rewards.
      rating_temperature: alpha of the paper; 0 puts all weight on the chosen response.

    References:
      Chen et al., 2024, arXiv:2402.05369, Eq. 11.
    """
    masks = role_masks(table)
    r = rewards(table, beta)
    targets = _targets(table, masks, rating_temperature)
    count = jnp.maximum(jnp.sum(masks.own, axis=1, keepdims=True), 1)
    losses = targets * jax.nn.softplus(-r) + jax.nn.softplus(r) / count
    some = jnp.any(masks.strong, axis=1)
    return keep(jnp.sum(keep(losses, masks.own), axis=1), some)


def _levels(table: ResponseTable, masks: Masks) -> jax.Array:
    """What responses are ranked by: ratings, or the role where any of them is unknown."""
    by_role = masks.chosen.astype(jnp.float32)
    if table.ratings is None:
        return by_role
    ratings = jnp.where(masks.own, table.ratings, 0.0)
    rated = ~jnp.any(jnp.isnan(ratings), axis=1, keepdims=True)
    return jnp.where(rated, ratings, by_role)


def _lowest(level: jax.Array, masks: Masks) -> jax.Array:
    return jnp.min(jnp.where(masks.own, level, jnp.inf), axis=1, keepdims=True)


def _targets(table: ResponseTable, masks: Masks, temperature: float) -> jax.Array:
    """Weights of the own responses, [N, K], 0 elsewhere; they sum to 1 for real prompts."""
    if temperature == 0:
        return masks.chosen.astype(jnp.float32)
    if table.ratings is None:
        raise ValueError(
            'this loss needs ratings and the table has none; use rated data, or set '
            'rating_temperature to 0 to put all weight on the chosen response'
        )
    ratings = jnp.where(masks.own, table.ratings, -jnp.inf)
    real = jnp.any(masks.own, axis=1, keepdims=True)
    return keep(jax.nn.softmax(jnp.where(real, ratings / temperature, 0.0), axis=1), real)
