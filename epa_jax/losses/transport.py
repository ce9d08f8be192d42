"""Alignment by optimal transport: distributions over the batch, compared by quantile.

Both losses sort over all pairs of all prompts in the table, so they must be given the
table of a whole step; the training step does so (`LossDef.couples_prompts`). TRL sorts
each device's micro-batch. A prompt's loss is the mean over its pairs. WEAK responses are
ignored. Both return float32 [N], 0 for a prompt without pairs.
"""

import jax
import jax.numpy as jnp

from epa_jax.losses.pairs import Side, mean_over_pairs, pair_mask
from epa_jax.types import ResponseTable


def aot(
    table: ResponseTable,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    pairs: str = 'best_rest',
) -> jax.Array:
    """Alignment via Optimal Transport, paired data.

    L = -(1 - e) * log sigmoid(beta * d) - e * log sigmoid(-beta * d)
    d = quantile of p_w - p_l less the same quantile of ref_w - ref_l

    Args:
      table: response table with a reference, of the whole step.
      beta: inverse temperature.
      label_smoothing: e.
      pairs: which pairs.

    References:
      Melnyk et al., 2024, arXiv:2406.05882.
    """
    mask = pair_mask(table, pairs)

    def link(good: Side, bad: Side) -> jax.Array:
        reference = good.reference - bad.reference
        partner = same_quantile(good.logps - bad.logps, reference, mask)
        return _sigmoid_loss(beta * (good.logps - bad.logps - partner), label_smoothing)

    return mean_over_pairs(table, pairs, link)


def aot_unpaired(
    table: ResponseTable,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    pairs: str = 'best_rest',
) -> jax.Array:
    """Alignment via Optimal Transport, unpaired data.

    L as in `aot`, with d = quantile of a less the same quantile of b over the batch,
    where a and b are log(pi / pi_ref) of the preferred and of the other responses.

    Args:
      table: response table with a reference, of the whole step.
      beta: inverse temperature.
      label_smoothing: e.
      pairs: which pairs; a response counts once for every pair it is in.

    References:
      Melnyk et al., 2024, arXiv:2406.05882.
    """
    mask = pair_mask(table, pairs)

    def link(good: Side, bad: Side) -> jax.Array:
        partner = same_quantile(good.ratio, bad.ratio, mask)
        return _sigmoid_loss(beta * (good.ratio - partner), label_smoothing)

    return mean_over_pairs(table, pairs, link)


def same_quantile(x: jax.Array, y: jax.Array, mask: jax.Array) -> jax.Array:
    """For every masked entry of x, the entry of y that has its rank.

    Args:
      x: broadcasts to the mask's shape.
      y: likewise.
      mask: bool; only these entries are ranked.

    Returns:
      An array of the mask's shape; 0 where the mask is False.
    """
    flat = mask.ravel()
    x, y = (jnp.broadcast_to(v, mask.shape).ravel() for v in (x, y))
    rank_of_x = jnp.argsort(jnp.argsort(jnp.where(flat, x, jnp.inf)))
    order_of_y = jnp.argsort(jnp.where(flat, y, jnp.inf))
    partner = jnp.where(flat, y, 0.0)[order_of_y][rank_of_x]
    return jnp.where(flat, partner, 0.0).reshape(mask.shape)


def _sigmoid_loss(h: jax.Array, label_smoothing: float) -> jax.Array:
    softplus = jax.nn.softplus
    return (1 - label_smoothing) * softplus(-h) + label_smoothing * softplus(h)
