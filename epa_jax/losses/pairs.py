"""Pairs of responses: which ones a pairwise loss compares, and their mean."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from epa_jax.losses.rewards import keep, role_masks
from epa_jax.types import Array, ResponseTable

PAIRS = ('best_rest', 'all', 'adjacent')


class Side(NamedTuple):
    """The preferred, or the other, response of every pair; broadcasts to [N, K, K].

    Attributes:
      logps: float32, sum over response tokens of log pi.
      ref_logps: the same of the reference, or None.
      lengths: float32, tokens in the sum.
      ratings: float32, NaN where unknown.
    """

    logps: jax.Array
    ref_logps: jax.Array | None
    lengths: jax.Array
    ratings: jax.Array

    @property
    def ratio(self) -> jax.Array:
        """log(pi / pi_ref), of the whole response."""
        return self.logps - self.reference

    @property
    def reference(self) -> jax.Array:
        """`ref_logps`, or an error that says how to get them."""
        if self.ref_logps is None:
            raise ValueError(
                'this loss needs reference log-probs and the table has none; set '
                "reference.mode to 'cached' or 'in_step', or choose a reference-free loss"
            )
        return self.ref_logps

    @property
    def mean_logps(self) -> jax.Array:
        """Mean over response tokens of log pi."""
        return self.logps / self.lengths

    @property
    def mean_ratio(self) -> jax.Array:
        """Mean over response tokens of log(pi / pi_ref)."""
        return self.ratio / self.lengths


def pair_mask(table: ResponseTable, pairs: str) -> jax.Array:
    """Which pairs to compare: bool [N, K, K], True where i is preferred to j.

    Args:
      table: response table. PAD and WEAK responses are in no pair.
      pairs: 'best_rest', the chosen response with each strong negative; 'all', every two
        responses whose ratings differ; 'adjacent', of those the neighbours in rank. The
        chosen response is above a strong negative of the same rating. A prompt of which
        any rating is unknown has the pairs of 'best_rest'.

    Raises:
      ValueError: another value of `pairs`.
    """
    if pairs not in PAIRS:
        raise ValueError(f'pairs={pairs!r}: expected one of {", ".join(PAIRS)}')
    masks = role_masks(table)
    by_role = masks.chosen[:, :, None] & masks.strong[:, None, :]
    if pairs == 'best_rest' or table.ratings is None:
        return by_role
    ratings = jnp.where(masks.own, table.ratings, 0.0)
    rated = ~jnp.any(jnp.isnan(ratings), axis=1)[:, None, None]
    higher = ratings[:, :, None] > ratings[:, None, :]
    equal = ratings[:, :, None] == ratings[:, None, :]
    both = masks.own[:, :, None] & masks.own[:, None, :]
    above = jnp.where(rated, both & (higher | (equal & by_role)), by_role)
    if pairs == 'all':
        return above
    between = jnp.any(above[:, :, :, None] & above[:, None, :, :], axis=2)
    return above & ~between


def sides(table: ResponseTable) -> tuple[Side, Side]:
    """Both sides of every pair, shaped [N, K, 1] and [N, 1, K]; harmless where absent."""
    own = role_masks(table).own

    def safe(values: Array, fill: float) -> jax.Array:
        return jnp.where(own, values, fill)

    ratings = table.ratings
    side = Side(
        logps=safe(table.logps, -1.0),
        ref_logps=None if table.ref_logps is None else safe(table.ref_logps, -1.0),
        lengths=jnp.maximum(safe(table.lengths, 1.0), 1.0),
        ratings=safe(jnp.nan if ratings is None else ratings, 0.0),
    )
    return (
        jax.tree.map(lambda x: x[:, :, None], side),
        jax.tree.map(lambda x: x[:, None, :], side),
    )


def mean_over_pairs(
    table: ResponseTable, pairs: str, link: Callable[[Side, Side], jax.Array]
) -> jax.Array:
    """Mean of a pair's loss over each prompt's pairs.

    Args:
      table: response table.
      pairs: see `pair_mask`.
      link: (preferred, other) -> loss of the pair, elementwise.

    Returns:
      float32 [N]; 0 for a prompt without pairs.
    """
    mask = pair_mask(table, pairs)
    losses = link(*sides(table))
    count = jnp.sum(mask, axis=(1, 2))
    return jnp.sum(keep(losses, mask), axis=(1, 2)) / jnp.maximum(count, 1)
