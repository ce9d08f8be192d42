"""How close learned rewards come to the slope-1 line through the true ones.

With r_theta = beta * log(pi_theta / pi_ref), the optimum of the KL-regularised objective
satisfies r_theta(y|x) = r_true(x, y) + C(x) for all y. Both measures ignore C(x).
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Linearity:
    """Agreement of two rewards, prompt by prompt.

    Attributes:
      pearson: float64 [N], in [-1, 1]; NaN for a prompt with fewer than two responses or
        where one of the rewards is constant.
      slope1_error: float64 [N], mean square of r_theta - r_true - C, with the C of each
        prompt that makes it smallest; NaN for a prompt with fewer than two responses.
    """

    pearson: np.ndarray
    slope1_error: np.ndarray

    @property
    def mean_pearson(self) -> float:
        """Mean over the prompts that have one; NaN without any."""
        return _mean(self.pearson)

    @property
    def mean_slope1_error(self) -> float:
        """Mean over the prompts that have one; NaN without any."""
        return _mean(self.slope1_error)

    @property
    def mean_slope1_root(self) -> float:
        """The same of the root of each prompt's error, in units of reward."""
        return _mean(np.sqrt(self.slope1_error))


def linearity(
    r_theta_NK: np.ndarray, r_true_NK: np.ndarray, mask_NK: np.ndarray | None = None
) -> Linearity:
    """Pearson coefficient and slope-1 error of each prompt.

    Args:
      r_theta_NK: learned rewards of K responses to N prompts.
      r_true_NK: their true rewards.
      mask_NK: bool, True for responses that exist; all unless given.

    Raises:
      ValueError: arrays of different shapes.

    References:
      Energy-Based Preference Model Offers Better Offline Alignment than the
      Bradley-Terry Preference Model, 2024, arXiv:2412.13862, table 1. Whether its error
      is the mean square or the root is not known, so both are here.
    """
    mask = np.ones(r_theta_NK.shape, bool) if mask_NK is None else np.asarray(mask_NK, bool)
    if not r_theta_NK.shape == r_true_NK.shape == mask.shape or mask.ndim != 2:
        raise ValueError(
            f'shapes {r_theta_NK.shape}, {r_true_NK.shape}, {mask.shape}: expected [N, K] '
            'for all'
        )
    count = mask.sum(axis=1)
    x, y = (centred(r, mask) for r in (r_true_NK, r_theta_NK))
    enough = count >= 2
    spread = np.sqrt(np.sum(x * x, axis=1) * np.sum(y * y, axis=1))
    scale = np.maximum(_largest(r_true_NK, mask), 1) * np.maximum(
        _largest(r_theta_NK, mask), 1
    )
    varies = enough & (spread > 1e-12 * scale)
    pearson = np.full(len(mask), np.nan)
    np.divide(np.sum(x * y, axis=1), spread, out=pearson, where=varies)
    error = np.full(len(mask), np.nan)
    np.divide(np.sum((y - x) ** 2, axis=1), count, out=error, where=enough)
    return Linearity(np.clip(pearson, -1, 1), error)


def centred(r_NK: np.ndarray, mask_NK: np.ndarray) -> np.ndarray:
    """Rewards less the mean of their prompt, float64; 0 where `mask_NK` is False."""
    r = np.where(mask_NK, r_NK, 0.0).astype(np.float64)
    mean = r.sum(axis=1, keepdims=True) / np.maximum(mask_NK.sum(axis=1, keepdims=True), 1)
    return np.where(mask_NK, r - mean, 0.0)


def _largest(r_NK: np.ndarray, mask_NK: np.ndarray) -> np.ndarray:
    return np.max(np.abs(np.where(mask_NK, r_NK, 0.0)), axis=1, initial=0.0)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float('nan')
