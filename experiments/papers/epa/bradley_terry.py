"""The flaw of Bradley-Terry: a line of minimisers, of which one is on the slope-1 line.

Claim: where the pairs shown do not connect all responses, DPO's population loss has a
  continuum of minimisers with different slope-1 errors; the IPM's has one, the true reward.
Command: python -m experiments.papers.epa.bradley_terry
World: one prompt, 8 responses, random reference and rewards (tabular, float64). Pairs are
  shown within the responses 0-3 and within 4-7, never across; labels are Bradley-Terry.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from epa_jax.losses.energy import epa, ipm
from epa_jax.losses.pairwise import dpo
from epa_jax.theory.fit import minimise
from epa_jax.theory.population import (
    Population,
    best_of_all,
    bradley_terry_pairs,
    with_weak,
)
from epa_jax.theory.worlds import World, kl, random_world, slope_and_pearson
from experiments.papers.common import COLOURS, arguments, panels, save, write_csv

BETA, SEED = 0.5, 0
HALF = 4


def two_islands(world: World) -> np.ndarray:
    """Which responses are shown together: those of one half, [N, M, M]."""
    half = np.arange(world.reward.shape[1]) // HALF
    same = half[:, None] == half[None, :]
    return np.broadcast_to(same.astype(float), (len(world.reward), *same.shape))


def along_the_path(world: World, shifts: np.ndarray) -> list[dict[str, Any]]:
    """Population losses of r_true with one island lifted by each shift."""
    pairs = bradley_terry_pairs(world, two_islands(world))
    weak = with_weak(pairs, jnp.full_like(world.log_ref, -np.log(2 * HALF)), 2)
    lifted = (np.arange(2 * HALF) >= HALF).astype(float)
    rows = []
    for shift in shifts:
        reward = world.reward + shift * lifted
        logps = jax.nn.log_softmax(world.log_ref + reward / world.beta, axis=1)
        rows.append({'shift': float(shift), **losses_at(world, logps, pairs, weak)})
    return rows


def losses_at(
    world: World, logps: jax.Array, pairs: Population, weak: Population
) -> dict[str, Any]:
    """Population losses and exact measures of one policy."""
    beta, ref = world.beta, world.log_ref
    gap = np.asarray(world.r_theta(logps) - world.reward)
    return {
        'dpo': float(pairs.loss(functools.partial(dpo, beta=beta), logps, ref)),
        'epa_1_1_2': float(weak.loss(functools.partial(epa, beta=beta), logps, ref)),
        'ipm': float(
            best_of_all(world).loss(functools.partial(ipm, beta=beta), logps, ref)
        ),
        'slope1_error': float(gap.var(axis=1).mean()),
        'pearson': float(slope_and_pearson(world.r_theta(logps), world.reward)[1].mean()),
        'kl_to_optimum': float(kl(logps, world.log_optimum).mean()),
    }


def dpo_loss(logits: jax.Array, world: World, pairs: Population) -> jax.Array:
    """DPO's population loss of free logits."""
    logps = jax.nn.log_softmax(logits, axis=1)
    return pairs.loss(functools.partial(dpo, beta=world.beta), logps, world.log_ref)


def from_random_starts(world: World, starts: int) -> list[dict[str, Any]]:
    """Where the same minimiser ends from different starts."""
    pairs = bradley_terry_pairs(world, two_islands(world))
    weak = with_weak(pairs, jnp.full_like(world.log_ref, -np.log(2 * HALF)), 2)
    rows = []
    for seed in range(starts):
        noise = np.random.default_rng(seed).normal(size=world.reward.shape)
        start = jnp.asarray(world.log_ref + (noise if seed else 0 * noise))
        fit = minimise(dpo_loss, start, world, pairs)
        logps = jax.nn.log_softmax(fit.params, axis=1)
        gap = np.asarray(world.r_theta(logps) - world.reward)
        shift = float((gap[:, HALF:].mean(axis=1) - gap[:, :HALF].mean(axis=1)).mean())
        name = 'reference' if seed == 0 else f'random {seed}'
        rows.append(
            {
                'start': name,
                'shift': shift,
                **losses_at(world, logps, pairs, weak),
                'gradient_norm': fit.gradient_norm,
            }
        )
    return rows


def draw(path: list[dict[str, Any]], ends: list[dict[str, Any]], file: Path) -> None:
    """Losses along the path, and the slope-1 error of its points."""
    figure, (left, right) = panels(2)
    shift = [row['shift'] for row in path]
    for key, name, colour in (
        ('dpo', 'DPO', COLOURS['DPO']),
        ('epa_1_1_2', 'EPA 1:1:2, uniform weak negatives', COLOURS['EPA']),
        ('ipm', 'IPM', COLOURS['IPM']),
    ):
        values = np.array([row[key] for row in path])
        left.plot(shift, values - values.min(), color=colour, label=name, linewidth=1.8)
    left.set_xlabel('shift of one island from the true reward, nats')
    left.set_ylabel('population loss above its least on the path')
    left.set_title('A line of minimisers for DPO alone', loc='left', fontsize=10)
    left.legend(frameon=False, fontsize=8)
    right.plot(shift, [row['slope1_error'] for row in path], color=COLOURS['exact'])
    right.scatter(
        [row['shift'] for row in ends],
        [row['slope1_error'] for row in ends],
        color=COLOURS['DPO'],
        s=18,
        zorder=3,
        label='DPO minimised, from the reference and random starts',
    )
    right.set_xlabel('shift of one island from the true reward, nats')
    right.set_ylabel('slope-1 error, mean square, nats²')
    right.set_title('All of these minimise DPO', loc='left', fontsize=10)
    right.legend(frameon=False, fontsize=8)
    save(figure, file)


def main() -> None:
    """Writes results/bradley_terry*.csv and bradley_terry.png."""
    args = arguments(__file__, __doc__)
    with jax.enable_x64(True):
        world = random_world(1, 2 * HALF, BETA, SEED)
        path = along_the_path(world, np.linspace(-3, 3, 61))
        ends = from_random_starts(world, 12)
    write_csv(args.out / 'bradley_terry_path.csv', path)
    write_csv(args.out / 'bradley_terry_starts.csv', ends)
    draw(path, ends, args.out / 'bradley_terry.png')
    spread = np.ptp([row['dpo'] for row in path])
    errors = [row['slope1_error'] for row in ends]
    print(
        f'DPO along the path: losses within {spread:.2g} of each other\n'
        f'DPO minimised from {len(ends)} starts: losses within '
        f'{np.ptp([row["dpo"] for row in ends]):.2g}, slope-1 errors '
        f'{min(errors):.3f} to {max(errors):.3f}'
    )


if __name__ == '__main__':
    main()
