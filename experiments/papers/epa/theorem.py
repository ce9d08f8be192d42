"""Theorem 3.1: the maximum likelihood of the IPM is unique and on the slope-1 line.

Claim: from any start, the IPM's exact maximum-likelihood estimate has r_theta = r_true +
  C(x) for every response (slope 1, Pearson 1).
Command: python -m experiments.papers.epa.theorem
Worlds: tabular policies (free logits; 4 prompts, 16 responses) and LLaMAs (2 prompts, the
  15 responses of a tree of depth 3 over 3 tokens), random rewards and references.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from epa_jax.losses.energy import ipm
from epa_jax.theory import neural
from epa_jax.theory.fit import Fit, descend, minimise
from epa_jax.theory.population import Population, best_of_all
from epa_jax.theory.worlds import World, kl, random_world, slope_and_pearson
from epa_jax.types import Params
from experiments.papers.common import arguments, write_csv

Row = dict[str, Any]


def tabular_loss(logits: jax.Array, world: World, data: Population) -> jax.Array:
    """Negative log-likelihood of the IPM, expected, of free logits."""
    logps = jax.nn.log_softmax(logits, axis=1)
    return data.loss(functools.partial(ipm, beta=world.beta), logps, world.log_ref)


def tabular(
    worlds: int, starts: int, betas: tuple[float, ...] = (0.1, 0.5, 1.0)
) -> list[Row]:
    """Free logits in float64, from normal starts of standard deviation 3."""
    rows: list[Row] = []
    with jax.enable_x64(True):
        for seed, beta in itertools.product(range(worlds), betas):
            world = random_world(4, 16, beta, seed)
            data = best_of_all(world)
            for start in range(starts):
                logits = 3 * np.random.default_rng([seed, start]).normal(size=(4, 16))
                fit = minimise(tabular_loss, jnp.asarray(logits), world, data)
                logps = np.asarray(jax.nn.log_softmax(fit.params, axis=1))
                rows.append(_row('tabular', seed, start, world, logps, fit))
    return rows


def llama(worlds: int, starts: int, steps: int = 3000, beta: float = 0.5) -> list[Row]:
    """LLaMAs of two layers in float32, from random parameters."""
    spec = neural.small_spec(3)
    tree = neural.make_tree(spec, [[1, 2], [2, 1]], 3)

    def population_loss(params: Params, world: World, data: Population) -> jax.Array:
        loss = functools.partial(ipm, beta=beta)
        return data.loss(loss, tree.logps(params), world.log_ref)

    rows: list[Row] = []
    for seed in range(worlds):
        world = neural.neural_world(tree, neural.random_params(spec, seed), beta, seed)
        data = best_of_all(world)
        for start in range(starts):
            params = neural.random_params(spec, 1000 + start, scale=2.0)
            fit = descend(population_loss, params, world, data, steps=steps, lr=3e-3)
            logps = np.asarray(neural.logps(tree, fit.params), np.float64)
            rows.append(_row('llama', seed, start, world, logps, fit))
    return rows


def _row(
    kind: str, seed: int, start: int, world: World, logps: np.ndarray, fit: Fit
) -> Row:
    slope, pearson = slope_and_pearson(world.r_theta(logps), world.reward)
    return {
        'world': kind,
        'seed': seed,
        'start': start,
        'beta': world.beta,
        'worst_slope_error': float(np.abs(np.asarray(slope) - 1).max()),
        'worst_pearson': float(np.min(pearson)),
        'worst_kl_to_optimum': float(np.max(kl(logps, world.log_optimum))),
        'gradient_norm': fit.gradient_norm,
        'steps': fit.steps,
    }


def main() -> None:
    """Writes results/theorem.csv and prints its extremes."""
    args = arguments(__file__, __doc__)
    rows = tabular(worlds=5, starts=10) + llama(worlds=5, starts=5)
    write_csv(args.out / 'theorem.csv', rows)
    for kind in ('tabular', 'llama'):
        mine = [row for row in rows if row['world'] == kind]
        worst = max(float(row['worst_slope_error']) for row in mine)
        within = sum(float(row['worst_slope_error']) < 1e-3 for row in mine)
        lowest = min(float(row['worst_pearson']) for row in mine)
        print(
            f'{kind}: {within} of {len(mine)} fits with every slope within 0.001 of 1; '
            f'largest |slope - 1| {worst:.2g}, smallest Pearson {lowest:.8f}'
        )


if __name__ == '__main__':
    main()
