"""What EPA's negatives do: bias by their distribution, variance by their number.

Claim: EPA's approximation of the IPM vanishes as the number of negatives grows.
  Checked exactly and on samples: with positives from the IPM, the population minimiser is
  r = log(p_positive / q) + C(x) for every number of negatives, so skewed negatives leave
  a bias that no number removes and the log q correction removes at once; what vanishes
  with the number is variance, and the exponent of that is estimated.
Command: python -m experiments.papers.epa.negatives
World: one prompt, 6 responses, random reference and rewards (tabular, float64).
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from epa_jax.losses.energy import epa, ipm
from epa_jax.theory.fit import minimise
from epa_jax.theory.population import Population, best_of_all, contrast
from epa_jax.theory.worlds import World, random_world
from epa_jax.types import Role
from experiments.papers.common import (
    COLOURS,
    arguments,
    interval,
    panels,
    save,
    write_csv,
)

BETA, RESPONSES = 0.5, 6
SAMPLERS = ('uniform', 'skewed', 'skewed, corrected')
LINES = {
    'uniform': COLOURS['EPA'],
    'skewed': COLOURS['DPO'],
    'skewed, corrected': COLOURS['IPM'],
}
Row = dict[str, Any]


def log_q_of(sampler: str, world: World) -> np.ndarray:
    """Distribution of each negative; the skewed one is the reference."""
    if sampler == 'uniform':
        return np.full_like(world.log_ref, -np.log(world.log_ref.shape[1]))
    return np.asarray(world.log_ref)


def epa_loss(logits: jax.Array, world: World, data: Population) -> jax.Array:
    """EPA's expected loss of free logits."""
    logps = jax.nn.log_softmax(logits, axis=1)
    return data.loss(functools.partial(epa, beta=world.beta), logps, world.log_ref)


def ipm_loss(logits: jax.Array, world: World, data: Population) -> jax.Array:
    """The IPM's expected negative log-likelihood of free logits."""
    logps = jax.nn.log_softmax(logits, axis=1)
    return data.loss(functools.partial(ipm, beta=world.beta), logps, world.log_ref)


def rewards_of(logits: jax.Array, world: World) -> np.ndarray:
    """r_theta less its mean over responses, [M]."""
    r = np.asarray(world.r_theta(jax.nn.log_softmax(logits, axis=1)))[0]
    return r - r.mean()


def population(seeds: int, numbers: tuple[int, ...]) -> list[Row]:
    """Slope-1 error of the exact minimiser, and its distance to log(p / q)."""
    rows: list[Row] = []
    for seed in range(seeds):
        world = random_world(1, RESPONSES, BETA, seed)
        log_p = np.asarray(jax.nn.log_softmax(world.reward, axis=1))
        true = (world.reward - world.reward.mean())[0]
        for sampler in SAMPLERS:
            log_q = log_q_of(sampler, world)
            corrected = sampler.endswith('corrected')
            predicted = (log_p - (0 if corrected else log_q))[0]
            for number in numbers:
                data = contrast(log_p, log_q, number, corrected)
                fit = minimise(epa_loss, jnp.asarray(world.log_ref), world, data)
                r = rewards_of(fit.params, world)
                away = np.abs(r - (predicted - predicted.mean())).max()
                rows.append(
                    {
                        'seed': seed,
                        'negatives': sampler,
                        'number': number,
                        'slope1_error': float(np.mean((r - true) ** 2)),
                        'distance_to_log_p_over_q': float(away),
                        'gradient_norm': fit.gradient_norm,
                    }
                )
    return rows


def sampled_rows(
    positives: np.ndarray, log_q: np.ndarray, number: int, corrected: bool, rng: Any
) -> Population:
    """Each positive with `number` fresh negatives."""
    drawn = rng.choice(RESPONSES, (len(positives), number), p=np.exp(log_q[0]))
    responses = np.concatenate([positives[:, None], drawn], axis=1)
    roles = np.full(responses.shape, Role.WEAK, np.int8)
    roles[:, 0] = Role.CHOSEN
    return Population(
        prompts=np.zeros(len(positives), int),
        responses=responses,
        roles=roles,
        weights=np.full(len(positives), 1 / len(positives)),
        log_q=log_q[0][responses] if corrected else None,
    )


def finite(
    replicates: int, positives: int, numbers: tuple[int, ...], seed: int = 0
) -> list[Row]:
    """Distance of the EPA estimate to the IPM's from the same positives.

    The mean over replicates of the difference is bias, the rest is variance; both are
    squared and summed over the responses.
    """
    world = random_world(1, RESPONSES, BETA, seed)
    log_p = np.asarray(jax.nn.log_softmax(world.reward, axis=1))
    gaps: dict[tuple[str, int], list[np.ndarray]] = {}
    for replicate in range(replicates):
        rng = np.random.default_rng([seed, replicate])
        drawn = rng.choice(RESPONSES, positives, p=np.exp(log_p[0]))
        frequency = np.bincount(drawn, minlength=RESPONSES) / positives
        chosen = best_of_all(world).replace(weights=frequency)
        start = jnp.asarray(world.log_ref)
        mle = rewards_of(minimise(ipm_loss, start, world, chosen).params, world)
        for sampler in SAMPLERS:
            log_q, corrected = log_q_of(sampler, world), sampler.endswith('corrected')
            for number in numbers:
                rows = sampled_rows(drawn, log_q, number, corrected, rng)
                fit = minimise(epa_loss, start, world, rows, tolerance=1e-8)
                gaps.setdefault((sampler, number), []).append(
                    rewards_of(fit.params, world) - mle
                )
    return [_split(key, np.array(values)) for key, values in gaps.items()]


def _split(key: tuple[str, int], gaps_RM: np.ndarray) -> Row:
    """Bias and variance of the gaps to the MLE, with an interval of the total."""
    total, half = interval(np.sum(gaps_RM**2, axis=1))
    variance = float(gaps_RM.var(axis=0, ddof=1).sum())
    # the squared mean overstates the squared bias by the variance of that mean
    bias2 = float((gaps_RM.mean(axis=0) ** 2).sum()) - variance / len(gaps_RM)
    return {
        'negatives': key[0],
        'number': key[1],
        'squared_error': total,
        'squared_error_95': half,
        'squared_bias': bias2,
        'variance': variance,
    }


def exponent(rows: list[Row], sampler: str, column: str) -> tuple[float, float]:
    """Exponent of a column against the number of negatives, and its 95 % half-width."""
    mine = [row for row in rows if row['negatives'] == sampler]
    x = np.log([row['number'] for row in mine])
    fit = scipy.stats.linregress(x, np.log([row[column] for row in mine]))
    return fit.slope, fit.stderr * scipy.stats.t.ppf(0.975, len(mine) - 2)


def draw(exact: list[Row], sampled: list[Row], file: Path) -> None:
    """Bias of the population's minimiser; error and variance on samples."""
    figure, axes = panels(3)
    for sampler in SAMPLERS:
        numbers = sorted({row['number'] for row in exact})
        errors = [
            interval(
                row['slope1_error']
                for row in exact
                if (row['negatives'], row['number']) == (sampler, number)
            )
            for number in numbers
        ]
        mean, half = np.array(errors).T
        axes[0].errorbar(
            numbers, mean, half, color=LINES[sampler], capsize=3, marker='o', label=sampler
        )
        mine = [row for row in sampled if row['negatives'] == sampler]
        for ax, column in ((axes[1], 'squared_error'), (axes[2], 'variance')):
            ax.plot(
                [row['number'] for row in mine],
                [row[column] for row in mine],
                color=LINES[sampler],
                marker='o',
                label=sampler,
            )
    titles = (
        'Exact minimiser: slope-1 error, nats²',
        'Samples: squared distance to the IPM’s MLE',
        'Samples: variance of that distance',
    )
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title, loc='left', fontsize=10)
        ax.set_xlabel('weak negatives')
        ax.set_xscale('log', base=2)
    for ax in axes[1:]:
        ax.set_yscale('log')
    axes[2].legend(frameon=False, fontsize=8, loc='lower left')
    save(figure, file)


def main() -> None:
    """Writes results/negatives_*.csv and negatives.png."""
    args = arguments(__file__, __doc__)
    with jax.enable_x64(True):
        exact = population(seeds=10, numbers=(1, 2, 4, 8))
        sampled = finite(replicates=40, positives=2000, numbers=(1, 2, 4, 8, 16, 32, 64))
    write_csv(args.out / 'negatives_population.csv', exact)
    write_csv(args.out / 'negatives_samples.csv', sampled)
    draw(exact, sampled, args.out / 'negatives.png')
    far = max(row['distance_to_log_p_over_q'] for row in exact)
    print(f'exact minimisers are log(p / q) + C within {far:.2g} nats')
    for sampler in SAMPLERS:
        for column in ('variance', 'squared_error'):
            slope, half = exponent(sampled, sampler, column)
            print(f'{sampler}: {column} falls as number^({slope:.2f} ± {half:.2f})')


if __name__ == '__main__':
    main()
