"""Random tables, and the losses again in float64 loops, from their formulas."""

import math

import numpy as np

from epa_jax.types import ResponseTable, Role


def random_table(seed: int, prompts: int = 6, responses: int = 5, scale: float = 20.0):
    """A table with every role; each prompt has one CHOSEN and one REJECTED at least."""
    rng = np.random.default_rng(seed)
    shape = (prompts, responses)
    roles = rng.choice([Role.PAD, Role.REJECTED, Role.WEAK], shape).astype(np.int8)
    for n in range(prompts):
        chosen, rejected = rng.choice(responses, 2, replace=False)
        roles[n, chosen], roles[n, rejected] = Role.CHOSEN, Role.REJECTED
    return ResponseTable(
        logps=rng.normal(-50, scale, shape).astype(np.float32),
        ref_logps=rng.normal(-50, scale, shape).astype(np.float32),
        lengths=rng.integers(1, 9, shape).astype(np.int32),
        roles=roles,
    )


def pair_table(gap, roles=(Role.CHOSEN, Role.REJECTED)):
    """One prompt of two responses whose log-ratios differ by `gap`."""
    return ResponseTable(
        logps=np.array([[gap - 7.0, -7.0]], np.float32),
        ref_logps=np.full((1, 2), -7.0, np.float32),
        lengths=np.ones((1, 2), np.int32),
        roles=np.array([roles], np.int8),
    )


def of_role(table, n, role):
    """Log-ratios, in float64, of prompt n's responses of one role."""
    return [
        float(table.logps[n, k]) - float(table.ref_logps[n, k])
        for k in range(table.roles.shape[1])
        if table.roles[n, k] == role
    ]


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def epa(table, n, beta=0.1, margin=0.0, weight_strong=1.0, weight_weak=1.0):
    chosen = of_role(table, n, Role.CHOSEN)
    if not chosen:
        return 0.0
    energies = [beta * chosen[0]]
    energies += [
        math.log(weight_strong) + beta * r + margin
        for r in of_role(table, n, Role.REJECTED)
    ]
    energies += [math.log(weight_weak) + beta * r for r in of_role(table, n, Role.WEAK)]
    top = max(energies)
    return -beta * chosen[0] + top + math.log(sum(math.exp(e - top) for e in energies))


def dpo(table, n, beta=0.1, margin=0.0, label_smoothing=0.0):
    chosen, rejected = of_role(table, n, Role.CHOSEN), of_role(table, n, Role.REJECTED)
    if not chosen or not rejected:
        return 0.0
    gaps = [beta * (chosen[0] - r) - margin for r in rejected]
    losses = [
        (1 - label_smoothing) * softplus(-h) + label_smoothing * softplus(h) for h in gaps
    ]
    return sum(losses) / len(losses)


def sft(table, n):
    return sum(
        -float(table.logps[n, k])
        for k in range(table.roles.shape[1])
        if table.roles[n, k] == Role.CHOSEN
    )


BRUTE_FORCE = {'epa': epa, 'dpo': dpo, 'sft': sft}
