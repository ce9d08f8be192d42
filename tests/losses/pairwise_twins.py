"""The losses of pairs again, from their formulas: (prompts, **hyperparameters) -> [N]."""

import math

from epa_jax.types import Role
from tests.losses.brute_force import (
    having,
    log_sigmoid,
    long_exp,
    mean_over_pairs,
    pairs_of,
    sigmoid,
)


def dpo(prompts, beta=0.1, margin=0.0, label_smoothing=0.0, pairs='best_rest'):
    def link(w, l):
        z = beta * (w.p - w.ref) - beta * (l.p - l.ref) - margin
        return -(1 - label_smoothing) * log_sigmoid(z) - label_smoothing * log_sigmoid(-z)

    return mean_over_pairs(prompts, pairs, link)


def robust(prompts, beta=0.1, label_smoothing=0.1, pairs='best_rest'):
    def link(w, l):
        z = beta * (w.ratio - l.ratio)
        right, flipped = -log_sigmoid(z), -log_sigmoid(-z)
        debiased = (1 - label_smoothing) * right - label_smoothing * flipped
        return debiased / (1 - 2 * label_smoothing)

    return mean_over_pairs(prompts, pairs, link)


def ipo(prompts, beta=0.1, tokens='sum', pairs='best_rest'):
    def link(w, l):
        if tokens == 'mean':
            h = (w.p - w.ref) / w.length - (l.p - l.ref) / l.length
        else:
            h = (w.p - l.p) - (w.ref - l.ref)
        return (h - 1 / beta / 2) ** 2

    return mean_over_pairs(prompts, pairs, link)


def hinge(prompts, beta=0.1, pairs='best_rest'):
    return mean_over_pairs(
        prompts, pairs, lambda w, l: max(0.0, 1 - beta * (w.ratio - l.ratio))
    )


def sigmoid_norm(prompts, beta=0.1, margin=0.0, pairs='best_rest'):
    return mean_over_pairs(
        prompts,
        pairs,
        lambda w, l: -log_sigmoid(beta * (w.mean_ratio - l.mean_ratio) - margin),
    )


def exo_pair(prompts, beta=0.1, label_smoothing=1e-3, pairs='best_rest'):
    def link(w, l):
        z = beta * (w.ratio - l.ratio)
        # KL of (sigma(z), sigma(-z)) to (1 - e, e)
        return sum(
            math.exp(log_q) * (log_q - math.log(label))
            for log_q, label in (
                (log_sigmoid(z), 1 - label_smoothing),
                (log_sigmoid(-z), label_smoothing),
            )
        )

    return mean_over_pairs(prompts, pairs, link)


def sppo_hard(prompts, beta=0.1, pairs='best_rest'):
    def link(w, l):
        return (w.ratio - 0.5 / beta) ** 2 + (l.ratio + 0.5 / beta) ** 2

    return mean_over_pairs(prompts, pairs, link)


def discopop(prompts, beta=0.1, tau=0.05, pairs='best_rest'):
    def link(w, l):
        z = beta * (w.ratio - l.ratio)
        m = sigmoid(z / tau)
        if z > -500:
            exponential = m * math.exp(-z)
        else:  # e^500 and more: one exponent, of log m - z
            exponential = math.exp(log_sigmoid(z / tau) - z)
        return sigmoid(-z / tau) * -log_sigmoid(z) + exponential

    return mean_over_pairs(prompts, pairs, link)


def apo_zero(prompts, beta=0.1, pairs='best_rest'):
    return mean_over_pairs(
        prompts,
        pairs,
        lambda w, l: 1 - sigmoid(beta * w.ratio) + sigmoid(beta * l.ratio),
    )


def apo_down(prompts, beta=0.1, pairs='best_rest'):
    return mean_over_pairs(
        prompts,
        pairs,
        lambda w, l: sigmoid(beta * w.ratio) + 1 - sigmoid(beta * (w.ratio - l.ratio)),
    )


def _plus_nll(losses, prompts, pairs, weight, tokens):
    """Adds the chosen response's NLL, where a prompt has any pair."""
    total = []
    for loss, prompt in zip(losses, prompts, strict=True):
        for y in having(prompt, Role.CHOSEN) if pairs_of(prompt, pairs) else []:
            loss -= weight * (y.mean_p if tokens == 'mean' else y.p)
        total.append(loss)
    return total


def cpo(prompts, beta=0.1, nll_weight=1.0, nll_tokens='sum', pairs='best_rest'):
    contrast = mean_over_pairs(
        prompts, pairs, lambda w, l: -log_sigmoid(beta * (w.p - l.p))
    )
    return _plus_nll(contrast, prompts, pairs, nll_weight, nll_tokens)


def slic(prompts, margin=1.0, nll_weight=0.1, nll_tokens='sum', pairs='best_rest'):
    contrast = mean_over_pairs(prompts, pairs, lambda w, l: max(0.0, margin - w.p + l.p))
    return _plus_nll(contrast, prompts, pairs, nll_weight, nll_tokens)


def simpo(prompts, beta=2.0, gamma=0.5, pairs='best_rest'):
    return mean_over_pairs(
        prompts,
        pairs,
        lambda w, l: -log_sigmoid(beta / w.length * w.p - beta / l.length * l.p - gamma),
    )


def alphapo(prompts, beta=2.0, gamma=0.5, alpha=0.25, pairs='best_rest'):
    def reward(y):
        if alpha == 0:
            return beta * y.mean_p
        return beta * (1 - long_exp(-alpha * y.mean_p)) / alpha

    return mean_over_pairs(
        prompts, pairs, lambda w, l: -log_sigmoid(reward(w) - reward(l) - gamma)
    )


def orpo(prompts, beta=0.1, pairs='best_rest'):
    def log_odds(y):
        probability = math.exp(y.mean_p)
        return y.mean_p - math.log(1 - probability)

    odds = mean_over_pairs(
        prompts, pairs, lambda w, l: -beta * log_sigmoid(log_odds(w) - log_odds(l))
    )
    return _plus_nll(odds, prompts, pairs, 1.0, 'mean')


def mpo(prompts, beta=0.1, tokens='sum', against='none', pairs='best_rest'):
    def value(y):
        log_prob = y.ratio if against == 'reference' else y.p
        return log_prob / y.length if tokens == 'mean' else log_prob

    return mean_over_pairs(
        prompts, pairs, lambda w, l: -sigmoid(beta * (value(w) - value(l)))
    )


def _gaps(w, l, beta, rating_scale):
    return beta * (w.ratio - l.ratio), rating_scale * (w.rating - l.rating)


def _bernoulli_kl(p, q):
    """KL between coins of log-odds p and q, outcome by outcome."""
    outcomes = ((log_sigmoid(p), log_sigmoid(q)), (log_sigmoid(-p), log_sigmoid(-q)))
    return sum(math.exp(log_p) * (log_p - log_q) for log_p, log_q in outcomes)


def rpo_sq(prompts, beta=0.1, rating_scale=1.0, pairs='best_rest'):
    def link(w, l):
        h, g = _gaps(w, l, beta, rating_scale)
        return (h - g) ** 2

    return mean_over_pairs(prompts, pairs, link)


def rpo_bwd_kl(prompts, beta=0.1, rating_scale=1.0, pairs='best_rest'):
    def link(w, l):
        h, g = _gaps(w, l, beta, rating_scale)
        return _bernoulli_kl(g, h)

    return mean_over_pairs(prompts, pairs, link)


def rpo_fwd_kl(prompts, beta=0.1, rating_scale=1.0, pairs='best_rest'):
    def link(w, l):
        h, g = _gaps(w, l, beta, rating_scale)
        return _bernoulli_kl(h, g)

    return mean_over_pairs(prompts, pairs, link)


def _quantiles(prompts, pairs, beta, label_smoothing, ranked, partner):
    """Sorts two lists over all pairs; each difference goes to the owner of the first."""
    both = [
        (n, w, l) for n, prompt in enumerate(prompts) for w, l in pairs_of(prompt, pairs)
    ]
    first = sorted((ranked(w, l), n) for n, w, l in both)
    second = sorted(partner(w, l) for _, w, l in both)
    losses = [[] for _ in prompts]
    for (x, n), y in zip(first, second, strict=True):
        z = beta * (x - y)
        smoothed = -label_smoothing * log_sigmoid(-z)
        losses[n].append(-(1 - label_smoothing) * log_sigmoid(z) + smoothed)
    return [sum(terms) / len(terms) if terms else 0.0 for terms in losses]


def aot(prompts, beta=0.1, label_smoothing=0.0, pairs='best_rest'):
    return _quantiles(
        prompts,
        pairs,
        beta,
        label_smoothing,
        lambda w, l: w.p - l.p,
        lambda w, l: w.ref - l.ref,
    )


def aot_unpaired(prompts, beta=0.1, label_smoothing=0.0, pairs='best_rest'):
    return _quantiles(
        prompts, pairs, beta, label_smoothing, lambda w, l: w.ratio, lambda w, l: l.ratio
    )


PAIRWISE = {
    twin.__name__: twin
    for twin in (
        *(dpo, robust, ipo, hinge, sigmoid_norm, exo_pair, sppo_hard, discopop),
        *(apo_zero, apo_down, cpo, slic, simpo, alphapo, orpo, mpo),
        *(rpo_sq, rpo_fwd_kl, rpo_bwd_kl, aot, aot_unpaired),
    )
}
