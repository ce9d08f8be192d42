"""Reward-aware Preference Optimization: the gap of rewards towards the gap of ratings.

With h = beta * (a - b), log-ratios a and b of the preferred and the other response of a
pair, and g = rating_scale * (rating_w - rating_l). With more than two responses a
prompt's loss is the mean over its pairs. WEAK responses are ignored. All need ratings and
return float32 [N], 0 for a prompt without pairs.

The KL divergences are named as in NeMo-Aligner (rpo_fwd_kl, rpo_bwd_kl, rpo_sq): forward
is from the policy's side to the ratings', which elsewhere is often called backward.

References:
  Nemotron-4 340B, 2024, arXiv:2406.11704, Sec. 3.3; Sun et al., Reward-aware Preference
  Optimization, 2025, arXiv:2502.00203.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from epa_jax.losses.pairs import Side, mean_over_pairs
from epa_jax.types import ResponseTable

Distance = Callable[[jax.Array, jax.Array], jax.Array]


def rpo_sq(
    table: ResponseTable,
    *,
    beta: float = 0.1,
    rating_scale: float = 1.0,
    pairs: str = 'best_rest',
) -> jax.Array:
    """L = (h - g)^2.

    Args:
      table: response table with a reference and ratings.
      beta: inverse temperature.
      rating_scale: nats of reward for one point of rating.
      pairs: which pairs.
    """
    return _mean_distance(table, beta, rating_scale, pairs, lambda h, g: jnp.square(h - g))


def rpo_fwd_kl(
    table: ResponseTable,
    *,
    beta: float = 0.1,
    rating_scale: float = 1.0,
    pairs: str = 'best_rest',
) -> jax.Array:
    """L = KL(sigmoid(h) || sigmoid(g)), of two Bernoulli distributions.

    Args:
      table: response table with a reference and ratings.
      beta: inverse temperature.
      rating_scale: nats of reward for one point of rating.
      pairs: which pairs.
    """
    return _mean_distance(table, beta, rating_scale, pairs, _bernoulli_kl)


def rpo_bwd_kl(
    table: ResponseTable,
    *,
    beta: float = 0.1,
    rating_scale: float = 1.0,
    pairs: str = 'best_rest',
) -> jax.Array:
    """L = KL(sigmoid(g) || sigmoid(h)), of two Bernoulli distributions.

    Args:
      table: response table with a reference and ratings.
      beta: inverse temperature.
      rating_scale: nats of reward for one point of rating.
      pairs: which pairs.
    """
    return _mean_distance(
        table, beta, rating_scale, pairs, lambda h, g: _bernoulli_kl(g, h)
    )


def _bernoulli_kl(p: jax.Array, q: jax.Array) -> jax.Array:
    """KL(sigmoid(p) || sigmoid(q)) from the logits."""
    softplus, sigmoid = jax.nn.softplus, jax.nn.sigmoid
    won = sigmoid(p) * (softplus(-q) - softplus(-p))
    return won + sigmoid(-p) * (softplus(q) - softplus(p))


def _mean_distance(
    table: ResponseTable, beta: float, scale: float, pairs: str, distance: Distance
) -> jax.Array:
    if table.ratings is None:
        raise ValueError('this loss needs ratings and the table has none; use rated data')

    def link(good: Side, bad: Side) -> jax.Array:
        h = beta * (good.ratio - bad.ratio)
        return distance(h, scale * (good.ratings - bad.ratings))

    return mean_over_pairs(table, pairs, link)
