"""Pairwise losses on log-ratios: DPO and its relatives.

In all of them a and b are log(pi / pi_ref) of the preferred and the other response of a
pair, sums over tokens unless said otherwise, in nats. With more than two responses a
prompt's loss is the mean over its pairs (`pairs`, see `losses.pairs.pair_mask`). WEAK
responses are ignored. All return float32 [N], 0 for a prompt without pairs.
"""

import jax
import jax.numpy as jnp

from epa_jax.losses.pairs import Side, mean_over_pairs
from epa_jax.types import ResponseTable

softplus = jax.nn.softplus
sigmoid = jax.nn.sigmoid


def dpo(
    table: ResponseTable,
    *,
    beta: float = 0.1,
    margin: float = 0.0,
    label_smoothing: float = 0.0,
    pairs: str = 'best_rest',
) -> jax.Array:
    """Direct Preference Optimization, with a margin or conservative labels if wanted.

    L = -(1 - e) * log sigmoid(h) - e * log sigmoid(-h),  h = beta * (a - b) - margin

    Args:
      table: response table with a reference.
      beta: inverse temperature.
      margin: nats by which the rewards should differ.
      label_smoothing: e, probability that the label of a pair is wrong (cDPO). TRL of
        2026 ignores its key of this name for this loss; here it counts.
      pairs: which pairs.

    References:
      Rafailov et al., 2023, arXiv:2305.18290, Eq. 7; label smoothing: Mitchell, A note
      on DPO with noisy preferences, 2023; margin: arXiv:2412.13862.
    """

    def link(good: Side, bad: Side) -> jax.Array:
        h = beta * (good.ratio - bad.ratio) - margin
        return (1 - label_smoothing) * softplus(-h) + label_smoothing * softplus(h)

    return mean_over_pairs(table, pairs, link)


def robust(
    table: ResponseTable,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.1,
    pairs: str = 'best_rest',
) -> jax.Array:
    """DPO whose expectation under labels flipped with probability e is that of DPO.

    L = (-(1 - e) * log sigmoid(h) + e * log sigmoid(-h)) / (1 - 2e),  h = beta * (a - b)

    It may be negative. TRL's and Liger's `robust`.

    Args:
      table: response table with a reference.
      beta: inverse temperature.
      label_smoothing: e, below 1/2.
      pairs: which pairs.

    References:
      Chowdhury et al., 2024, arXiv:2403.00409.
    """

    def link(good: Side, bad: Side) -> jax.Array:
        h = beta * (good.ratio - bad.ratio)
        flipped = (1 - label_smoothing) * softplus(-h) - label_smoothing * softplus(h)
        return flipped / (1 - 2 * label_smoothing)

    return mean_over_pairs(table, pairs, link)


def ipo(
    table: ResponseTable,
    *,
    beta: float = 0.1,
    tokens: str = 'sum',
    pairs: str = 'best_rest',
) -> jax.Array:
    """Identity Preference Optimization.

    L = (a - b - 1 / (2 * beta))^2

    Args:
      table: response table with a reference.
      beta: the paper's tau.
      tokens: 'sum', as in the paper, eric-mitchell's and OpenRLHF; 'mean' divides a and b
        by their own length first, as TRL, HALOs and LLaMA-Factory do.
      pairs: which pairs.

    References:
      Azar et al., 2023, arXiv:2310.12036, Eq. 17.
    """

    def link(good: Side, bad: Side) -> jax.Array:
        if tokens == 'mean':
            gap = good.mean_ratio - bad.mean_ratio
        else:
            gap = good.ratio - bad.ratio
        return jnp.square(gap - 1 / (2 * beta))

    return mean_over_pairs(table, pairs, link)


def hinge(
    table: ResponseTable, *, beta: float = 0.1, pairs: str = 'best_rest'
) -> jax.Array:
    """Hinge on the reward difference: RSO's loss, SLiC normalised by a reference.

    L = max(0, 1 - beta * (a - b)); torchtune calls beta gamma.

    Args:
      table: response table with a reference.
      beta: inverse temperature.
      pairs: which pairs.

    References:
      Liu et al., Statistical Rejection Sampling, 2023, arXiv:2309.06657; Zhao et al.,
      SLiC-HF, 2023, arXiv:2305.10425.
    """
    return mean_over_pairs(
        table, pairs, lambda good, bad: jax.nn.relu(1 - beta * (good.ratio - bad.ratio))
    )


def sigmoid_norm(
    table: ResponseTable,
    *,
    beta: float = 0.1,
    margin: float = 0.0,
    pairs: str = 'best_rest',
) -> jax.Array:
    """DPO on log-ratios that are means over tokens.

    L = -log sigmoid(beta * (a / len_w - b / len_l) - margin)

    TRL's `sigmoid_norm`, open-instruct's `dpo_norm` (there with beta = 5).

    Args:
      table: response table with a reference.
      beta: inverse temperature, of a mean: larger values than DPO's are usual.
      margin: nats by which the rewards should differ.
      pairs: which pairs.

    References:
      Lambert et al., Tulu 3, 2024, arXiv:2411.15124, Sec. 5.
    """
    return mean_over_pairs(
        table,
        pairs,
        lambda good, bad: softplus(margin - beta * (good.mean_ratio - bad.mean_ratio)),
    )


def exo_pair(
    table: ResponseTable,
    *,
    beta: float = 0.1,
    label_smoothing: float = 1e-3,
    pairs: str = 'best_rest',
) -> jax.Array:
    """Efficient exact optimisation on pairs: a reverse KL to smoothed labels.

    L = q * (log q - log(1 - e)) + (1 - q) * (log(1 - q) - log e),  q = sigmoid(h),
    h = beta * (a - b)

    Args:
      table: response table with a reference.
      beta: inverse temperature.
      label_smoothing: e, above 0.
      pairs: which pairs.

    References:
      Ji et al., 2024, arXiv:2402.00856, Eq. 16.
    """

    def link(good: Side, bad: Side) -> jax.Array:
        h = beta * (good.ratio - bad.ratio)
        win = sigmoid(h) * (-softplus(-h) - jnp.log1p(-label_smoothing))
        return win + sigmoid(-h) * (-softplus(h) - jnp.log(label_smoothing))

    return mean_over_pairs(table, pairs, link)


def sppo_hard(
    table: ResponseTable, *, beta: float = 0.1, pairs: str = 'best_rest'
) -> jax.Array:
    """Self-play preference optimisation with hard win probabilities 1 and 0.

    L = (a - 1 / (2 * beta))^2 + (b + 1 / (2 * beta))^2

    Args:
      table: response table with a reference.
      beta: 1 / the paper's eta.
      pairs: which pairs.

    References:
      Wu et al., 2024, arXiv:2405.00675.
    """
    target = 1 / (2 * beta)
    return mean_over_pairs(
        table,
        pairs,
        lambda good, bad: jnp.square(good.ratio - target) + jnp.square(bad.ratio + target),
    )


def discopop(
    table: ResponseTable, *, beta: float = 0.1, tau: float = 0.05, pairs: str = 'best_rest'
) -> jax.Array:
    """Discovered Preference Optimization: the log-ratio modulated loss.

    L = (1 - m) * -log sigmoid(h) + m * exp(-h),  m = sigmoid(h / tau), h = beta * (a - b)

    m * exp(-h) is computed as one exponential, which cannot overflow for tau up to 1.

    Args:
      table: response table with a reference.
      beta: inverse temperature.
      tau: temperature of the modulation.
      pairs: which pairs.

    References:
      Lu et al., 2024, arXiv:2406.08414, Eq. 5.
    """

    def link(good: Side, bad: Side) -> jax.Array:
        h = beta * (good.ratio - bad.ratio)
        return sigmoid(-h / tau) * softplus(-h) + jnp.exp(-h - softplus(-h / tau))

    return mean_over_pairs(table, pairs, link)


def apo_zero(
    table: ResponseTable, *, beta: float = 0.1, pairs: str = 'best_rest'
) -> jax.Array:
    """Anchored Preference Optimization that raises the chosen and lowers the other.

    L = 1 - sigmoid(beta * a) + sigmoid(beta * b)

    Args:
      table: response table with a reference.
      beta: inverse temperature.
      pairs: which pairs.

    References:
      D'Oosterlinck et al., 2024, arXiv:2408.06266.
    """
    return mean_over_pairs(
        table,
        pairs,
        lambda good, bad: sigmoid(-beta * good.ratio) + sigmoid(beta * bad.ratio),
    )


def apo_down(
    table: ResponseTable, *, beta: float = 0.1, pairs: str = 'best_rest'
) -> jax.Array:
    """Anchored Preference Optimization that lowers both, the rejected more.

    L = sigmoid(beta * a) + 1 - sigmoid(beta * (a - b))

    Args:
      table: response table with a reference.
      beta: inverse temperature.
      pairs: which pairs.

    References:
      D'Oosterlinck et al., 2024, arXiv:2408.06266.
    """

    def link(good: Side, bad: Side) -> jax.Array:
        return sigmoid(beta * good.ratio) + sigmoid(-beta * (good.ratio - bad.ratio))

    return mean_over_pairs(table, pairs, link)
