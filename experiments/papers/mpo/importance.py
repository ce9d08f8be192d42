"""Preference as reward: the off-policy gradient of theorem 4.1, exactly.

Claim: the gradient of the expected preference reward can be estimated from preference
  data, whatever policy wrote its responses.
Command: python -m experiments.papers.mpo.importance
World: 3 prompts, 7 responses, random rewards (tabular, float64); labels Bradley-Terry.

A pair (y_1, y_2) is a state, which response to prefer an action a with the policy
pi(a) = sigmoid(h_theta(a, other)), and its reward the probability that the annotator
agrees. Three gradients are compared:

  on-policy   sum over pairs and actions of pi(a) r(a) grad log pi(a)
  off-policy  - the gradient of MPO's loss on the annotator's own choices: the weights
              pi(a) / p(a) of importance sampling times r(a) = p(a) are pi(a)
  weighted    the same from pairs of another distribution, each pair weighted by
              (its probability under the policy) / (its probability in the data)
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from epa_jax.losses.reference_free import mpo
from epa_jax.theory.population import Population, bradley_terry_pairs, independent_pairs
from epa_jax.theory.worlds import World, random_world
from experiments.papers.common import arguments, write_csv

PROMPTS, RESPONSES, BETA = 3, 7, 0.5
POLICIES = 5


def behaviours(world: World) -> dict[str, np.ndarray]:
    """Distributions of the responses that the data show, as log-probabilities [N, M]."""
    uniform = np.full(world.reward.shape, -np.log(RESPONSES))
    narrow = np.log(0.9 * np.exp(4 * np.asarray(world.log_ref)) + 1e-3)
    return {
        'uniform': uniform,
        'reference': np.asarray(world.log_ref),
        'narrow': np.asarray(jax.nn.log_softmax(narrow, axis=1)),
    }


def on_policy(logits: jax.Array, world: World, shown: np.ndarray) -> jax.Array:
    """Gradient of the expected preference reward by its definition.

    Args:
      logits: [N, M], of the policy.
      world: gives the probability that the annotator prefers i to j.
      shown: [N, M, M], probability of each ordered pair, given the prompt.
    """

    def log_choice(logits: jax.Array) -> jax.Array:
        logps = jax.nn.log_softmax(logits, axis=1)
        return jax.nn.log_sigmoid(BETA * (logps[:, :, None] - logps[:, None, :]))

    agrees = jax.nn.sigmoid(world.reward[:, :, None] - world.reward[:, None, :])
    # i preferred to j; each unordered pair appears in both orders, as do its actions
    chosen = jnp.exp(log_choice(logits))
    slopes = jax.jacobian(log_choice)(logits)  # [N, M, M, N, M]
    weights = (shown + shown.transpose(0, 2, 1)) * chosen * agrees / len(shown)
    return jnp.einsum('nij,nijxy->xy', weights, slopes)


def off_policy(logits: jax.Array, world: World, data: Population) -> jax.Array:
    """Minus the gradient of MPO's loss on rows of (preferred, other)."""

    def loss(logits: jax.Array) -> jax.Array:
        logps = jax.nn.log_softmax(logits, axis=1)
        return data.loss(functools.partial(mpo, beta=BETA), logps, world.log_ref)

    return -jax.grad(loss)(logits)


def pairs_of(log_probability: np.ndarray) -> np.ndarray:
    """Probability that i and j, different independent draws, are shown: [N, M, M]."""
    shown = independent_pairs(log_probability) * ~np.eye(RESPONSES, dtype=bool)
    return shown / shown.sum(axis=(1, 2), keepdims=True)


def reweighted(data: Population, wanted: np.ndarray, shown: np.ndarray) -> Population:
    """Rows weighted as if their pairs had been drawn from `wanted`, not `shown`."""
    return dataclasses.replace(data, weights=data.weights * ratios(data, wanted, shown))


def ratios(data: Population, wanted: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Probability of each row's pair in one distribution over that in another, [R]."""
    where = (data.prompts, data.responses[:, 0], data.responses[:, 1])
    return wanted[where] / shown[where]


def effective_fraction(data: Population, weighted: Population) -> float:
    """Effective over actual number of pairs, (E w)^2 / E w^2."""
    w = weighted.weights / data.weights
    return float((data.weights @ w) ** 2 / (data.weights @ w**2))


def compare(
    world: World, logits: jax.Array, name: str, log_q: np.ndarray
) -> dict[str, Any]:
    """Gradients of one policy from the data of one behaviour."""
    shown, own = pairs_of(log_q), pairs_of(jax.nn.log_softmax(logits, axis=1))
    data = bradley_terry_pairs(world, shown)
    weighted = reweighted(data, own, shown)
    exact, wanted = on_policy(logits, world, shown), on_policy(logits, world, own)

    def error(found: jax.Array, target: jax.Array) -> float:
        return float(jnp.linalg.norm(found - target) / jnp.linalg.norm(target))

    estimate = off_policy(logits, world, data)
    weights = ratios(data, own, shown)
    return {
        'behaviour': name,
        'gradient_norm': float(jnp.linalg.norm(exact)),
        'error_on_shown_pairs': error(estimate, exact),
        'error_on_own_pairs_unweighted': error(estimate, wanted),
        'error_on_own_pairs_weighted': error(off_policy(logits, world, weighted), wanted),
        'smallest_weight': float(weights.min()),
        'largest_weight': float(weights.max()),
        'effective_fraction': effective_fraction(data, weighted),
    }


def main() -> None:
    """Writes results/importance.csv."""
    args = arguments(__file__, __doc__)
    rows = []
    with jax.enable_x64(True):
        for seed in range(POLICIES):
            world = random_world(PROMPTS, RESPONSES, BETA, seed)
            noise = np.random.default_rng(100 + seed).normal(size=world.reward.shape)
            for name, log_q in behaviours(world).items():
                rows.append(
                    {'seed': seed, **compare(world, world.log_ref + noise, name, log_q)}
                )
    write_csv(args.out / 'importance.csv', rows)
    for key in ('error_on_shown_pairs', 'error_on_own_pairs_weighted'):
        print(f'{key}: at most {max(row[key] for row in rows):.1e}')
    unweighted = [row['error_on_own_pairs_unweighted'] for row in rows]
    print(f'error_on_own_pairs_unweighted: {min(unweighted):.2f} to {max(unweighted):.2f}')


if __name__ == '__main__':
    main()
