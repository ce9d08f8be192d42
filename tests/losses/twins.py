"""Every loss again in float64 loops, from its formula; and every change of a table."""

import math

from epa_jax.types import Role
from tests.losses.brute_force import (
    all_rated,
    having,
    log_sigmoid,
    log_sum_exp,
    long_exp,
    own,
    sigmoid,
)
from tests.losses.pairwise_twins import PAIRWISE


def epa(prompts, beta=0.1, margin=0.0, weight_strong=1.0, weight_weak=1.0):
    def energy(y):
        r = beta * y.ratio - y.log_q
        if y.role == Role.CHOSEN:
            return r
        weight = weight_strong if y.role == Role.REJECTED else weight_weak
        if weight == 0:
            return -math.inf
        return r + math.log(weight) + (margin if y.role == Role.REJECTED else 0.0)

    return [
        log_sum_exp([energy(y) for y in prompt]) - energy(having(prompt, Role.CHOSEN)[0])
        if prompt
        else 0.0
        for prompt in prompts
    ]


def ipm(prompts, beta=0.1):
    """-log of the softmax over all responses, at the chosen one."""
    return [
        log_sum_exp([beta * y.ratio for y in prompt])
        - beta * having(prompt, Role.CHOSEN)[0].ratio
        if prompt
        else 0.0
        for prompt in prompts
    ]


def pl_dpo(prompts, beta=0.1):
    """Takes the best of those that remain, until only the lowest do."""

    def likelihood(prompt):
        rank = (lambda y: y.rating) if all_rated(prompt) else (lambda y: -y.role)
        remaining, loss = own(prompt), 0.0
        while len({rank(y) for y in remaining}) > 1:
            top = max(rank(y) for y in remaining)
            total = log_sum_exp([beta * y.ratio for y in remaining])
            loss += sum(total - beta * y.ratio for y in remaining if rank(y) == top)
            remaining = [y for y in remaining if rank(y) != top]
        return loss

    return [likelihood(prompt) for prompt in prompts]


def _targets(prompt, temperature):
    """Softmax of ratings, in the order of `own`."""
    if temperature == 0:
        return [1.0 if y.role == Role.CHOSEN else 0.0 for y in own(prompt)]
    scaled = [y.rating / temperature for y in own(prompt)]
    total = log_sum_exp(scaled)
    return [math.exp(s - total) for s in scaled]


def infonca(prompts, beta=0.1, rating_temperature=1e-4):
    losses = []
    for prompt in prompts:
        if not having(prompt, Role.REJECTED):
            losses.append(0.0)
            continue
        r = [beta * y.ratio for y in own(prompt)]
        targets = _targets(prompt, rating_temperature)
        total = log_sum_exp(r)
        losses.append(-sum(s * (x - total) for s, x in zip(targets, r, strict=True)))
    return losses


def nca(prompts, beta=0.1, rating_temperature=1e-4):
    losses = []
    for prompt in prompts:
        if not having(prompt, Role.REJECTED):
            losses.append(0.0)
            continue
        r = [beta * y.ratio for y in own(prompt)]
        targets = _targets(prompt, rating_temperature)
        attract = -sum(s * log_sigmoid(x) for s, x in zip(targets, r, strict=True))
        losses.append(attract - sum(log_sigmoid(-x) for x in r) / len(r))
    return losses


def kto(prompts, beta=0.1, weight_chosen=1.0, weight_rejected=1.0, baseline='weak'):
    weak = [y.ratio for prompt in prompts for y in having(prompt, Role.WEAK)]
    z = max(0.0, sum(weak) / len(weak)) if weak and baseline == 'weak' else 0.0
    losses = []
    for prompt in prompts:
        terms = []
        for y in own(prompt):
            if y.role == Role.CHOSEN:
                terms.append(weight_chosen * (1 - sigmoid(beta * (y.ratio - z))))
            else:
                terms.append(weight_rejected * (1 - sigmoid(beta * (z - y.ratio))))
        losses.append(sum(terms) / len(terms) if terms else 0.0)
    return losses


def bco(prompts, beta=0.1, shift='running', seen=None):
    """`seen` holds rewards of earlier batches."""
    here = [beta * y.ratio for prompt in prompts for y in own(prompt)]
    met = here + list(seen or []) if shift == 'running' else here
    d = sum(met) / len(met) if met and shift != 'none' else 0.0
    losses = []
    for prompt in prompts:
        chosen = [beta * y.ratio - d for y in having(prompt, Role.CHOSEN)]
        rejected = [beta * y.ratio - d for y in having(prompt, Role.REJECTED)]
        if not rejected:
            losses.append(0.0)
            continue
        against = -sum(log_sigmoid(-x) for x in rejected) / len(rejected)
        losses.append(-log_sigmoid(chosen[0]) + against)
    return losses


def sft(prompts):
    return [-sum(y.p for y in having(prompt, Role.CHOSEN)) for prompt in prompts]


TWINS = PAIRWISE | {
    twin.__name__: twin for twin in (epa, ipm, pl_dpo, infonca, nca, kto, bco, sft)
}


def change(prompts, function):
    """Every prompt with (response, chosen response) -> response applied to it."""
    return [
        [function(y, having(prompt, Role.CHOSEN)[0]) for y in prompt] for prompt in prompts
    ]


def without_reference(prompts):
    return change(prompts, lambda y, _: y._replace(ref=0.0))


def with_divergence(prompts, divergence, alpha=0.0):
    """Log u replaced by f'(u), with u = pi / pi_ref and f(u) of the divergence."""
    of_log_u = {
        'reverse_kl': lambda x: x,  # f = u log u, constant left out
        'forward_kl': lambda x: -long_exp(-x),  # f = -log u
        'js': lambda x: math.log(2) + log_sigmoid(x),  # log 2u / (1 + u)
        'alpha': lambda x: (1 - long_exp(-alpha * x)) / alpha if alpha else x,
    }[divergence]
    return change(prompts, lambda y, _: y._replace(p=of_log_u(y.ratio), ref=0.0))


def with_rating_margin(prompts, scale, beta, per_token=False):
    """Strong negatives count as `scale` nats better for each point they are worse."""

    def moved(y, chosen):
        if y.role != Role.REJECTED:
            return y
        extra = scale / beta * (chosen.rating - y.rating)
        return y._replace(p=y.p + extra * (y.length if per_token else 1))

    return change(prompts, moved)


def wpo_weights(prompts):
    """Mean over pairs of the two sides' weights, never above 1."""
    weights = []
    for prompt in prompts:
        v = {y: math.exp(y.mean_p - y.log_collision) for y in own(prompt)}
        (chosen,) = having(prompt, Role.CHOSEN) or [None]
        both = [min(1.0, v[chosen] * v[y]) for y in having(prompt, Role.REJECTED)]
        weights.append(sum(both) / len(both) if both else 0.0)
    return weights


def chosen_nll(prompts, tokens):
    return [
        -sum(y.p / (y.length if tokens == 'mean' else 1) for y in having(p, Role.CHOSEN))
        for p in prompts
    ]
