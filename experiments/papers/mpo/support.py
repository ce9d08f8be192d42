"""What each regularisation holds: deterministic preferences on a part of the responses.

Claims: with deterministic preferences DPO's margins run away and its KL term is lost;
  IPO's regularisation does not reach responses outside the preference data; MPO with the
  likelihood of the reference's own samples holds both.
Command: python -m experiments.papers.mpo.support
World: 3 prompts, 8 responses, random (tabular, float64); 10 seeds. Pairs are of responses
  0-3, independent draws of the reference, and the better one always wins. MPO's streams
  are samples of the reference, exactly: minus their likelihood is KL(ref || policy) plus a
  constant.

Every method descends its population loss from the reference (Adam, free logits), measured
along the way: margin of the shown pairs, KL in both directions, probability of the
responses that no pair shows, and expected preference reward (how often the annotator
agrees with the policy's choice). IPO is also started elsewhere: with a fifth of the odds
of the responses that no pair shows.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from epa_jax.losses import make_loss
from epa_jax.theory.population import Population, bradley_terry_pairs, independent_pairs
from epa_jax.theory.worlds import World, kl, random_world
from experiments.papers.common import (
    COLOURS,
    arguments,
    band,
    interval,
    panels,
    save,
    write_csv,
)

PROMPTS, RESPONSES, SHOWN, BETA = 3, 8, 4, 0.5
MARKS = (0, 30, 100, 300, 1000, 3000, 10000)
LR = 0.03


@dataclasses.dataclass(frozen=True)
class Method:
    """A line of the figure.

    Attributes:
      loss: key of `losses.LOSSES`.
      likelihood: weight of the reference's samples.
      values: hyperparameters.
      unshown_odds: the start's odds of responses outside the pairs, over the reference's.
      colour: of the line.
    """

    loss: str
    likelihood: float = 0.0
    values: tuple[tuple[str, Any], ...] = ()
    unshown_odds: float = 1.0
    colour: str = COLOURS['other']


METHODS = {
    'DPO': Method('dpo', colour=COLOURS['DPO']),
    'IPO': Method('ipo', colour=COLOURS['other']),
    'IPO, other start': Method('ipo', unshown_odds=0.2, colour='#c9b3e6'),
    'MPO': Method('mpo', colour='#8ecae6'),
    'MPO + SFT 0.01': Method('mpo', 0.01, colour='#4895c8'),
    'MPO + SFT 0.1': Method('mpo', 0.1, colour=COLOURS['EPA']),
    'MPO + SFT 0.1, other start': Method('mpo', 0.1, unshown_odds=0.2, colour='#0b3c5d'),
    'DPO + SFT 0.1': Method('dpo', 0.1, colour=COLOURS['IPM']),
}
MEASURES = {
    'margin': 'margin of shown pairs, nats',
    'kl': 'KL(policy || reference), nats',
    'forward_kl': 'KL(reference || policy), nats',
    'unshown': 'probability of unshown responses',
    'preference_reward': 'expected preference reward',
}


def shown_pairs(world: World) -> Population:
    """Pairs of the first responses; the one of larger reward always wins."""
    few = np.arange(RESPONSES) < SHOWN
    proposals = independent_pairs(world.log_ref) * few[:, None] * few[None, :]
    return bradley_terry_pairs(world, proposals, deterministic=True)


def objective(method: Method, world: World, pairs: Population) -> Callable[..., jax.Array]:
    """The method's population loss of free logits."""
    loss = make_loss(method.loss, {'beta': BETA, **dict(method.values)}).fn

    def value(logits: jax.Array) -> jax.Array:
        logps = jax.nn.log_softmax(logits, axis=1)
        samples = -jnp.mean(jnp.sum(jnp.exp(world.log_ref) * logps, axis=1))
        return pairs.loss(loss, logps, world.log_ref) + method.likelihood * samples

    return value


def start(method: Method, world: World) -> jax.Array:
    """Logits to descend from."""
    unshown = np.arange(RESPONSES) >= SHOWN
    return jnp.asarray(world.log_ref + np.log(method.unshown_odds) * unshown)


def descend(
    method: Method, world: World, pairs: Population, marks: tuple[int, ...]
) -> list[jax.Array]:
    """Log-probs of the policy after these numbers of updates."""
    optimizer = optax.adam(LR)
    gradient = jax.grad(objective(method, world, pairs))

    @functools.partial(jax.jit, static_argnums=2)
    def updates(logits: jax.Array, state: Any, count: int) -> tuple[jax.Array, Any]:
        def update(_: Any, carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
            change, state = optimizer.update(gradient(carry[0]), carry[1])
            return optax.apply_updates(carry[0], change), state

        return jax.lax.fori_loop(0, count, update, (logits, state))

    logits = start(method, world)
    state, done, out = optimizer.init(logits), 0, []
    for mark in marks:
        logits, state = updates(logits, state, mark - done)
        done = mark
        out.append(jax.nn.log_softmax(logits, axis=1))
    return out


def measures(world: World, pairs: Population, logps: jax.Array) -> dict[str, float]:
    """See `MEASURES`; means over prompts or shown pairs."""
    table = pairs.table(logps, world.log_ref)
    margin = (table.logps - table.ref_logps) @ jnp.array([1.0, -1.0])
    choice = jax.nn.sigmoid(BETA * (table.logps @ jnp.array([1.0, -1.0])))
    return {
        'margin': float(pairs.weights @ margin),
        'kl': float(kl(logps, world.log_ref).mean()),
        'forward_kl': float(kl(world.log_ref, logps).mean()),
        'unshown': float(jnp.exp(logps[:, SHOWN:]).sum(axis=1).mean()),
        'preference_reward': float(pairs.weights @ choice),
    }


def run(seeds: int, marks: tuple[int, ...]) -> list[dict[str, Any]]:
    """Every method in every world."""
    rows = []
    for seed in range(seeds):
        world = random_world(PROMPTS, RESPONSES, BETA, seed)
        pairs = shown_pairs(world)
        for name, method in METHODS.items():
            path = descend(method, world, pairs, marks)
            for steps, logps in zip(marks, path, strict=True):
                found = measures(world, pairs, logps)
                rows.append({'method': name, 'seed': seed, 'steps': steps, **found})
    return rows


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """Each measure along the descent, with 95 % intervals over worlds."""
    figure, axes = panels(len(MEASURES))
    marks = sorted({row['steps'] for row in rows})
    for ax, (key, title) in zip(axes, MEASURES.items(), strict=True):
        for name, method in METHODS.items():
            mine = [row for row in rows if row['method'] == name]
            at = [[row[key] for row in mine if row['steps'] == m] for m in marks]
            band(ax, marks, at, method.colour, name)
        ax.set_xscale('symlog', linthresh=30)
        ax.set_title(title, loc='left', fontsize=10)
        ax.set_xlabel('updates')
    axes[0].legend(frameon=False, fontsize=7)
    save(figure, file)


def main() -> None:
    """Writes results/support.csv and support.png."""
    args = arguments(__file__, __doc__, seeds=10)
    with jax.enable_x64(True):
        rows = run(args.seeds, MARKS)
    write_csv(args.out / 'support.csv', rows)
    draw(rows, args.out / 'support.png')
    for name in METHODS:
        end = [r for r in rows if r['method'] == name and r['steps'] == MARKS[-1]]
        found = [f'{key} {interval(r[key] for r in end)[0]:.3f}' for key in MEASURES]
        print(f'{name}: {", ".join(found)}')


if __name__ == '__main__':
    main()
