"""What a learned reward says of rated responses: agreement, calibration, length bias."""

import dataclasses

import numpy as np

from epa_jax.evals.bootstrap import Interval, mean_interval, ratio_interval
from epa_jax.evals.linearity import centred, linearity

BINS = 10


@dataclasses.dataclass(frozen=True)
class Rated:
    """K responses to each of N prompts.

    Attributes:
      r_theta: float [N, K], learned rewards.
      r_true: float [N, K], ratings.
      lengths: int [N, K], tokens of the responses.
      mask: bool [N, K], responses that exist.
    """

    r_theta: np.ndarray
    r_true: np.ndarray
    lengths: np.ndarray
    mask: np.ndarray


def intrinsic(rated: Rated, seed: int = 0) -> dict[str, Interval]:
    """Every metric with its 95 % bootstrap interval over prompts.

    * pearson, slope1_error, slope1_root: see `linearity`;
    * accuracy: share of pairs of different ratings that r_theta orders alike, a tie
      counting one half; by prompt, then averaged;
    * margin: r_theta of the best response less the mean of the others;
    * calibration_error: mean of |p - share| over pairs, p = sigmoid(r_i - r_j) being the
      probability that r_theta gives the likelier side, in ten bins of p, and share how
      often that side has the better rating;
    * length_correlation: Pearson of r_theta with length, and length_correlation_true of
      the ratings with it, which is what the data themselves hold;
    * longer_best: share of prompts whose best response by r_theta is the longest.

    Args:
      rated: the rewards.
      seed: of the resampling.

    References:
      pearson and slope1_*: arXiv:2412.13862, table 1; calibration: expected calibration
      error, 2017, arXiv:1706.04599.
    """
    line = linearity(rated.r_theta, rated.r_true, rated.mask)
    lengths = rated.lengths.astype(np.float64)
    values = {
        'pearson': line.pearson,
        'slope1_error': line.slope1_error,
        'slope1_root': np.sqrt(line.slope1_error),
        'accuracy': _accuracy(rated),
        'margin': _margin(rated),
        'length_correlation': linearity(rated.r_theta, lengths, rated.mask).pearson,
        'length_correlation_true': linearity(rated.r_true, lengths, rated.mask).pearson,
        'longer_best': _longest_is_best(rated),
    }
    out = {name: mean_interval(value, seed) for name, value in values.items()}
    out['calibration_error'] = calibration_error(rated, seed)
    return out


def _pairs(rated: Rated) -> tuple[np.ndarray, np.ndarray]:
    """r_theta of the better rating less that of the worse, and which pairs count.

    Both [N, K, K], the first index being the better side.
    """
    both = rated.mask[:, :, None] & rated.mask[:, None, :]
    better = both & (rated.r_true[:, :, None] > rated.r_true[:, None, :])
    return rated.r_theta[:, :, None] - rated.r_theta[:, None, :], better


def _accuracy(rated: Rated) -> np.ndarray:
    gap, counts = _pairs(rated)
    right = np.where(gap == 0, 0.5, gap > 0)
    return _ratio(np.sum(right * counts, axis=(1, 2)), counts.sum(axis=(1, 2)))


def _margin(rated: Rated) -> np.ndarray:
    r = centred(rated.r_theta, rated.mask)
    count = rated.mask.sum(axis=1)
    best = np.argmax(np.where(rated.mask, rated.r_true, -np.inf), axis=1)
    mine = np.take_along_axis(r, best[:, None], axis=1)[:, 0]
    # the rewards less their mean sum to 0, so the others sum to -mine
    return np.where(count > 1, mine + _ratio(mine, count - 1), np.nan)


def _longest_is_best(rated: Rated) -> np.ndarray:
    lengths = np.where(rated.mask, rated.lengths, -1)
    best = np.argmax(np.where(rated.mask, rated.r_theta, -np.inf), axis=1)
    mine = np.take_along_axis(lengths, best[:, None], axis=1)[:, 0]
    alone = rated.mask.sum(axis=1) < 2
    return np.where(alone, np.nan, mine == lengths.max(axis=1))


def calibration_error(rated: Rated, seed: int = 0) -> Interval:
    """See `intrinsic`; the bins are those of all prompts, in every resample."""
    gap, counts = _pairs(rated)
    p = 1 / (1 + np.exp(-np.abs(gap)))
    place = np.minimum((BINS * (2 * p - 1)).astype(int), BINS - 1)
    right = np.where(gap == 0, 0.5, gap > 0)
    surplus = np.zeros((len(gap), BINS))
    for b in range(BINS):
        surplus[:, b] = np.sum((p - right) * (counts & (place == b)), axis=(1, 2))
    signs = np.sign(surplus.sum(axis=0))
    weights = counts.sum(axis=(1, 2)).astype(np.float64)
    # |sum of a bin| with the sign that the bin has over all prompts
    return ratio_interval(surplus @ signs, weights, seed)


def _ratio(totals: np.ndarray, counts: np.ndarray) -> np.ndarray:
    out = np.full(len(totals), np.nan)
    np.divide(totals, counts, out=out, where=counts > 0)
    return out
