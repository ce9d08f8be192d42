"""When weak negatives help: the bias they bring against the variance they remove.

Claim: EPA is nearer to the slope-1 line than DPO. Checked exactly, as a function of how
  often pairs connect two islands of responses: DPO's estimate is unbiased whenever they
  are connected at all, but its variance grows as the bridge thins; EPA's is biased and
  its variance does not. Which is nearer depends on the bridge and on the number of pairs.
Command: python -m experiments.papers.epa.slope1
World: one prompt, 8 responses in two islands of 4, random reference and rewards (tabular,
  float64), labels from Bradley-Terry, weak negatives from the reference of another prompt.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from epa_jax.losses.energy import epa
from epa_jax.theory.fit import minimise, sandwich
from epa_jax.theory.population import Population, bradley_terry_pairs, with_weak
from epa_jax.theory.worlds import World, random_world
from experiments.papers.common import (
    COLOURS,
    arguments,
    interval,
    panels,
    save,
    write_csv,
)
from experiments.papers.epa.bradley_terry import HALF, two_islands

BETA = 0.5
PAIRS = (300, 3000, 30000)
# name: number of weak negatives, and their weight in the softmax
METHODS = {
    'DPO': (0, 1.0),
    'EPA 1:1:1': (1, 1.0),
    'EPA 1:1:2': (2, 1.0),
    'EPA 1:1:4': (4, 1.0),
    'EPA 1:1:2, weight 0.1': (2, 0.1),
    'EPA 1:1:2, weight 0.01': (2, 0.01),
}
SHADES = dict(
    zip(
        METHODS,
        (COLOURS['DPO'], '#9ecae1', COLOURS['EPA'], '#08306b', COLOURS['IPM'], '#0b5d33'),
        strict=True,
    )
)
Row = dict[str, Any]


def bridged(world: World, share: float) -> np.ndarray:
    """Pairs shown: a share of them, drawn across the islands, [N, M, M]."""
    same = two_islands(world) * (1 - np.eye(2 * HALF))
    across = 1 - two_islands(world)
    return (1 - share) * same / same.sum() + share * across / across.sum()


def row_losses(
    logits: jax.Array, world: World, data: Population, weight: float
) -> jax.Array:
    """EPA's loss of every row of the population, [R]; DPO's without weak negatives."""
    logps = jax.nn.log_softmax(logits, axis=1)
    table = data.table(logps, world.log_ref)
    return epa(table, beta=world.beta, weight_weak=weight)


def expected_loss(
    logits: jax.Array, world: World, data: Population, weight: float
) -> jax.Array:
    """Its expectation."""
    return jnp.sum(data.weights * row_losses(logits, world, data, weight))


@jax.jit
def covariance(
    logits: jax.Array, world: World, data: Population, weight: float
) -> jax.Array:
    """Of the r_theta that n independent rows lead to, times n: [M, M]."""

    def losses(flat: jax.Array) -> jax.Array:
        return row_losses(flat.reshape(logits.shape), world, data, weight)

    return world.beta**2 * sandwich(losses, logits.ravel(), data.weights)


def measure(seed: int, share: float) -> list[Row]:
    """Bias and variance of every method in one world."""
    world = random_world(1, 2 * HALF, BETA, seed)
    other = np.asarray(random_world(1, 2 * HALF, BETA, seed + 1000).log_ref)
    pairs = bradley_terry_pairs(world, bridged(world, share))
    rows = []
    for method, (weak, weight) in METHODS.items():
        data = with_weak(pairs, other, weak) if weak else pairs
        fit = minimise(expected_loss, jnp.asarray(world.log_ref), world, data, weight)
        r = np.asarray(world.r_theta(jax.nn.log_softmax(fit.params, axis=1)) - world.reward)
        variance = float(jnp.trace(covariance(fit.params, world, data, weight))) / r.size
        bias2 = float(r.var())
        row = {
            'seed': seed,
            'bridge': share,
            'method': method,
            'squared_bias': bias2,
            'variance_times_pairs': variance,
            'gradient_norm': fit.gradient_norm,
        }
        rows.append(row | {f'error_{n}_pairs': bias2 + variance / n for n in PAIRS})
    return rows


def squared_bias(rows: list[Row], method: str) -> tuple[float, float]:
    """Mean and half-width over worlds; a world's bridges are averaged first."""
    worlds: dict[int, list[float]] = {}
    for row in rows:
        if row['method'] == method:
            worlds.setdefault(row['seed'], []).append(row['squared_bias'])
    return interval(float(np.mean(found)) for found in worlds.values())


def draw(rows: list[Row], file: Path) -> None:
    """Expected slope-1 error against the bridge, for each number of pairs."""
    figure, axes = panels(len(PAIRS))
    shares = sorted({row['bridge'] for row in rows})
    for ax, n in zip(axes, PAIRS, strict=True):
        for method, colour in SHADES.items():
            logs = [
                interval(
                    np.log10(row[f'error_{n}_pairs'])
                    for row in rows
                    if (row['method'], row['bridge']) == (method, share)
                )
                for share in shares
            ]
            mean, half = np.array(logs).T
            ax.plot(shares, 10**mean, color=colour, label=method)
            low, high = 10 ** (mean - half), 10 ** (mean + half)
            ax.fill_between(shares, low, high, color=colour, alpha=0.15, linewidth=0)
        ax.set_xscale('log')
        ax.set_yscale('log')
        ax.set_title(f'{n:,} pairs', loc='left', fontsize=10)
        ax.set_xlabel('share of pairs that bridge the islands')
    axes[0].set_ylabel('expected slope-1 error, nats²')
    axes[0].legend(frameon=False, fontsize=8)
    save(figure, file)


def main() -> None:
    """Writes results/slope1.csv and slope1.png."""
    args = arguments(__file__, __doc__, seeds=10)
    shares = 10.0 ** np.linspace(-4, -0.5, 8)
    with jax.enable_x64(True):
        rows = [
            row
            for seed in range(args.seeds)
            for share in shares
            for row in measure(seed, float(share))
        ]
    write_csv(args.out / 'slope1.csv', rows)
    draw(rows, args.out / 'slope1.png')
    for method in METHODS:
        mean, half = squared_bias(rows, method)
        print(f'{method}: squared bias {mean:.3g} ± {half:.2g} nats², mean of the bridges')


if __name__ == '__main__':
    main()
