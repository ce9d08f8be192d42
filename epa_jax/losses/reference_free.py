"""Pairwise losses that need no reference.

p_w and p_l are the policy's log-probs of the preferred and the other response of a pair,
sums over tokens unless said otherwise, in nats. With more than two responses a prompt's
loss is the mean over its pairs (`pairs`, see `losses.pairs.pair_mask`). WEAK responses
are ignored. All return float32 [N], 0 for a prompt without pairs.
"""

import jax
import jax.numpy as jnp

from epa_jax.losses.likelihood import chosen_nll
from epa_jax.losses.numerics import inverse_power
from epa_jax.losses.pairs import Side, mean_over_pairs, pair_mask
from epa_jax.types import ResponseTable

softplus = jax.nn.softplus


def _nll_of_pairs(table: ResponseTable, pairs: str, tokens: str) -> jax.Array:
    """NLL of the chosen response, [N]; 0 for a prompt without pairs."""
    some = jnp.any(pair_mask(table, pairs), axis=(1, 2))
    return jnp.where(some, chosen_nll(table, tokens), 0.0)


def cpo(
    table: ResponseTable,
    *,
    beta: float = 0.1,
    nll_weight: float = 1.0,
    nll_tokens: str = 'sum',
    pairs: str = 'best_rest',
) -> jax.Array:
    """Contrastive Preference Optimization.

    L = -log sigmoid(beta * (p_w - p_l)) - nll_weight * log pi(y_chosen|x)

    Args:
      table: response table; a reference is not used.
      beta: inverse temperature.
      nll_weight: of the behaviour-cloning term; TRL's cpo_alpha.
      nll_tokens: 'sum' as in the paper, or 'mean' over the response's tokens (TRL's mean
        is over the tokens of a micro-batch, which would make its size matter).
      pairs: which pairs.

    References:
      Xu et al., 2024, arXiv:2401.08417, Eq. 5.
    """
    contrast = mean_over_pairs(
        table, pairs, lambda good, bad: softplus(-beta * (good.logps - bad.logps))
    )
    return contrast + nll_weight * _nll_of_pairs(table, pairs, nll_tokens)


def slic(
    table: ResponseTable,
    *,
    margin: float = 1.0,
    nll_weight: float = 0.1,
    nll_tokens: str = 'sum',
    pairs: str = 'best_rest',
) -> jax.Array:
    """Sequence Likelihood Calibration: a hinge on log-probs and a likelihood term.

    L = max(0, margin - p_w + p_l) - nll_weight * log pi(y_chosen|x)

    Args:
      table: response table; a reference is not used.
      margin: delta of the paper, nats.
      nll_weight: lambda of the paper.
      nll_tokens: 'sum', or 'mean' over the response's tokens.
      pairs: which pairs.

    References:
      Zhao et al., SLiC-HF, 2023, arXiv:2305.10425, Eq. 4, with the chosen response as the
      regularisation target. HALOs' defaults.
    """
    contrast = mean_over_pairs(
        table, pairs, lambda good, bad: jax.nn.relu(margin - (good.logps - bad.logps))
    )
    return contrast + nll_weight * _nll_of_pairs(table, pairs, nll_tokens)


def simpo(
    table: ResponseTable,
    *,
    beta: float = 2.0,
    gamma: float = 0.5,
    pairs: str = 'best_rest',
) -> jax.Array:
    """Simple Preference Optimization.

    L = -log sigmoid(beta * (p_w / len_w - p_l / len_l) - gamma)

    Args:
      table: response table; a reference is not used.
      beta: scale of the mean log-probs.
      gamma: target margin, nats, outside the product with beta as in the paper, TRL and
        LLaMA-Factory; SimPO's and open-instruct's code has gamma_beta_ratio = gamma / beta.
      pairs: which pairs.

    References:
      Meng et al., 2024, arXiv:2405.14734, Eq. 6.
    """
    return mean_over_pairs(
        table,
        pairs,
        lambda good, bad: softplus(gamma - beta * (good.mean_logps - bad.mean_logps)),
    )


def alphapo(
    table: ResponseTable,
    *,
    beta: float = 2.0,
    gamma: float = 0.5,
    alpha: float = 0.25,
    pairs: str = 'best_rest',
) -> jax.Array:
    """AlphaPO: SimPO with another shape of reward.

    L = -log sigmoid(r_w - r_l - gamma),  r = beta * (1 - m^-alpha) / alpha

    with m the geometric mean of a response's token probabilities. alpha = 0 is SimPO.
    m^-alpha is continued linearly from e^30 on.

    Args:
      table: response table; a reference is not used.
      beta: scale of the rewards.
      gamma: target margin, nats.
      alpha: shape of the reward.
      pairs: which pairs.

    References:
      Gupta et al., 2025, arXiv:2501.03884.
    """

    def link(good: Side, bad: Side) -> jax.Array:
        r_good, r_bad = (beta * inverse_power(y.mean_logps, alpha) for y in (good, bad))
        return softplus(gamma - (r_good - r_bad))

    return mean_over_pairs(table, pairs, link)


def orpo(table: ResponseTable, *, beta: float = 0.1, pairs: str = 'best_rest') -> jax.Array:
    """Odds Ratio Preference Optimization.

    L = -p_chosen / len - beta * log sigmoid(logit(m_w) - logit(m_l))

    with m the geometric mean of a response's token probabilities, logit(m) =
    log m - log(1 - m); the likelihood term is a mean over tokens.

    Args:
      table: response table; a reference is not used.
      beta: lambda of the paper.
      pairs: which pairs.

    References:
      Hong et al., 2024, arXiv:2403.07691, Eq. 6 and 7.
    """

    def logit(y: Side) -> jax.Array:
        log_m = jnp.minimum(y.mean_logps, -(2.0**-24))  # m = 1 has infinite odds
        return log_m - jax.nn.log1mexp(-log_m)

    odds = mean_over_pairs(
        table, pairs, lambda good, bad: softplus(-(logit(good) - logit(bad)))
    )
    return _nll_of_pairs(table, pairs, 'mean') + beta * odds


def mpo(
    table: ResponseTable,
    *,
    beta: float = 0.1,
    tokens: str = 'sum',
    against: str = 'none',
    pairs: str = 'best_rest',
) -> jax.Array:
    """The pair term of Maximum Preference Optimization: preference as reward.

    L = -sigmoid(h),  h = beta * (p_w - p_l)

    Its gradient is DPO's times sigmoid(h): the off-policy estimate of the gradient of the
    expected preference reward. Not TRL's MPO, which is Mixed Preference Optimization.

    Args:
      table: response table; a reference is needed when `against` is 'reference'.
      beta: scale of h. Sums of log-probs differ by hundreds of nats before any training,
        where sigmoid is flat: keep beta small, or use means or the reference.
      tokens: 'sum', or 'mean' over each response's tokens.
      against: 'none' as in the paper, or 'reference' to take log-ratios.
      pairs: which pairs.

    References:
      Preference as Reward, Maximum Preference Optimization with Importance Sampling,
      2023, arXiv:2312.16430, Theorem 4.1.
    """

    def value(y: Side) -> jax.Array:
        if against == 'reference':
            return y.mean_ratio if tokens == 'mean' else y.ratio
        return y.mean_logps if tokens == 'mean' else y.logps

    return mean_over_pairs(
        table, pairs, lambda good, bad: -jax.nn.sigmoid(beta * (value(good) - value(bad)))
    )
