"""The keys of a run that choose its loss.

A key of type `X | None` is unset by default.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Which preference loss, and its hyperparameters and modifiers.

    An unset hyperparameter takes the loss's own default, an unset modifier is off;
    `python -m epa_jax.losses` prints which loss takes what.

    Attributes:
      name: a name from `epa_jax.losses.LOSSES`, or a weighted sum of several, such as
        '0.8*dpo + 0.2*bco'.
      beta: inverse temperature of the log-ratio reward.
      margin: nats asked for between chosen and strong negatives (EPA's m_c).
      label_smoothing: probability that a preference label is flipped.
      weight_strong: multiplies exp(reward) of each strong negative (epa).
      weight_weak: multiplies exp(reward) of each weak negative (epa).
      pairs: of more than two responses, 'best_rest', 'all' or 'adjacent' in rank.
      tokens: 'sum' or 'mean' of token log-probs (ipo, mpo).
      gamma: target margin (simpo, alphapo).
      alpha: shape of the reward (alphapo).
      tau: temperature of the modulation (discopop).
      against: 'none' or 'reference' (mpo).
      rating_temperature: of the softmax over ratings; 0 is all on the chosen response
        (infonca, nca).
      rating_scale: nats of reward for a point of rating (rpo_*).
      weight_chosen: of chosen responses (kto).
      weight_rejected: of strong negatives (kto).
      baseline: 'weak' or 'zero' (kto).
      shift: 'running', 'batch' or 'none' (bco).
      nll_weight: of the negative log-likelihood of the chosen response; part of cpo and
        slic, for any other loss a modifier (RPO's alpha).
      nll_tokens: 'sum' or 'mean' over its tokens; as a modifier, the mean.
      reference_free: modifier: the reference counts as probability 1.
      divergence: modifier: 'reverse_kl', 'forward_kl', 'js' or 'alpha'.
      divergence_alpha: of divergence 'alpha'.
      rating_margin: modifier: nats of margin for a point of rating between the chosen
        response and a strong negative.
      tail_weight: modifier: weight of response tokens past the length of the prompt's
        shortest response (length desensitisation).
      wpo: modifier: weights each prompt by how likely the policy finds its responses.
    """

    name: str = 'epa'
    beta: float | None = None
    margin: float | None = None
    label_smoothing: float | None = None
    weight_strong: float | None = None
    weight_weak: float | None = None
    pairs: str | None = None
    tokens: str | None = None
    gamma: float | None = None
    alpha: float | None = None
    tau: float | None = None
    against: str | None = None
    rating_temperature: float | None = None
    rating_scale: float | None = None
    weight_chosen: float | None = None
    weight_rejected: float | None = None
    baseline: str | None = None
    shift: str | None = None
    nll_weight: float | None = None
    nll_tokens: str | None = None
    reference_free: bool | None = None
    divergence: str | None = None
    divergence_alpha: float | None = None
    rating_margin: float | None = None
    tail_weight: float | None = None
    wpo: bool | None = None
