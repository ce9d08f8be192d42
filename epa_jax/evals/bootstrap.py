"""Intervals for means over prompts, by resampling prompts."""

from typing import NamedTuple

import numpy as np

DRAWS = 2000


class Interval(NamedTuple):
    """An estimate and the ends of its 95 % percentile interval; NaN where unknown."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Such as '0.512 [0.431, 0.598]', or '0.512' without an interval."""
        known = not np.isnan(self.low)
        return f'{self.value:.3f}' + known * f' [{self.low:.3f}, {self.high:.3f}]'


def mean_interval(values: np.ndarray, seed: int = 0, draws: int = DRAWS) -> Interval:
    """Interval of a mean; NaN values are left out, as prompts that say nothing.

    Args:
      values: float [N], one for each prompt.
      seed: of the resampling.
      draws: resamples.
    """
    known = values[~np.isnan(values)]
    return ratio_interval(known, np.ones(known.shape), seed, draws)


def ratio_interval(
    totals: np.ndarray, weights: np.ndarray, seed: int = 0, draws: int = DRAWS
) -> Interval:
    """Interval of sum(totals) / sum(weights); the prompts [N] are the independent draws."""
    if not weights.sum() > 0:
        return Interval(np.nan, np.nan, np.nan)
    value = float(totals.sum() / weights.sum())
    if np.count_nonzero(weights) < 2:  # one prompt says nothing of others
        return Interval(value, np.nan, np.nan)
    rng = np.random.default_rng(seed)
    ratios = []
    for _ in range(draws):  # one resample at a time: a prompt costs a few bytes
        chosen = rng.integers(0, len(totals), len(totals))
        below = weights[chosen].sum()
        if below > 0:
            ratios.append(totals[chosen].sum() / below)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Interval(value, float(low), float(high))
