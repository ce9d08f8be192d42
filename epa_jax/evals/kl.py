"""KL to the reference from samples of the policy.

With y drawn from the policy and x = log pi(y|x) - log pi_ref(y|x), KL(pi || pi_ref) is
the mean of k1 = x (unbiased, of any sign), of k3 = exp(-x) - 1 + x (unbiased, never
negative, of less variance where the policies are near) and, nearly, of k2 = x^2 / 2.

References:
  J. Schulman, Approximating KL divergence, 2020, joschu.net/blog/kl-approx.html.
"""

import numpy as np

from epa_jax.evals.bootstrap import Interval, mean_interval


def k1(log_ratios: np.ndarray) -> np.ndarray:
    """The log-ratios themselves."""
    return log_ratios


def k2(log_ratios: np.ndarray) -> np.ndarray:
    """Half their squares."""
    return 0.5 * np.square(log_ratios)


def k3(log_ratios: np.ndarray) -> np.ndarray:
    """exp(-x) - 1 + x."""
    return np.expm1(-log_ratios) + log_ratios


ESTIMATORS = {'k1': k1, 'k2': k2, 'k3': k3}


def kl_intervals(log_ratios_NS: np.ndarray, seed: int = 0) -> dict[str, Interval]:
    """Each estimate with its interval, nats.

    Args:
      log_ratios_NS: of S samples of the policy for each of N prompts.
      seed: of the resampling of prompts.
    """
    x = np.asarray(log_ratios_NS, np.float64)
    return {
        name: mean_interval(estimate(x).mean(axis=1), seed)
        for name, estimate in ESTIMATORS.items()
    }
