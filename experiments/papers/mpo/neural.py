"""What alignment keeps in a LLaMA all of whose responses can be counted.

Claims: trained on deterministic preferences for some prompts, DPO and IPO lose skills on
  prompts that no pair shows; MPO with SFT data and text keeps them.
Command: python -m experiments.papers.mpo.neural
World: LLaMAs of two layers; 9 prompts of three topics, all 40 responses of up to 3 tokens.
  Pairs are for the prompts of two topics: 64 for each, two samples of the reference, the
  better one always chosen. Text: 64 samples of the reference for each of the 9 prompts;
  SFT data: those of them that answer the prompts with pairs. 5 seeds (worlds, references,
  data);
  300 steps of 32 pairs and 32 samples of each stream; every method at four learning rates.

Measures are exact, over all responses, but for 200 questions: each is a prompt of the
third topic with a sample of the reference, the right answer, and three of its samples for
prompts of other topics (other responses, where one of them is the right answer).
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.axes import Axes

from epa_jax.losses import make_loss
from epa_jax.theory.neural import Tree
from epa_jax.theory.study import Data, Plan, draw
from epa_jax.theory.topical import topical_tree, topical_world
from epa_jax.theory.worlds import World, expectation, kl
from epa_jax.types import Array, Params
from experiments.papers.common import (
    COLOURS,
    arguments,
    interval,
    panels,
    save,
    write_csv,
)

BETA, SHOWN, QUESTIONS = 0.5, 6, 200
LRS = (1e-4, 3e-4, 1e-3, 3e-3)


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
      loss: key of `losses.LOSSES`.
      sft: weight of the likelihood of SFT data.
      text: of text.
      colour: in the figure; '' leaves it out.
    """

    loss: str
    sft: float
    text: float
    colour: str = ''


METHODS = {
    'DPO': Method('dpo', 0, 0, COLOURS['DPO']),
    'IPO': Method('ipo', 0, 0, COLOURS['other']),
    'MPO': Method('mpo', 0, 0, '#8ecae6'),
    'MPO + SFT': Method('mpo', 0.1, 0, '#4895c8'),
    'MPO + SFT + text': Method('mpo', 0.1, 0.1, '#0b3c5d'),
    'MPO + SFT + text, 0.01': Method('mpo', 0.01, 0.01),
    'MPO + SFT + text, 1': Method('mpo', 1, 1),
    'DPO + SFT + text': Method('dpo', 0.1, 0.1, COLOURS['IPM']),
}


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is shown and trained."""

    rows: int = 64
    steps: int = 300
    batch: int = 32
    d_model: int = 32
    fit_steps: int = 600


class Case(NamedTuple):
    """One seed: a world and what is shown of it.

    Attributes:
      world: reference and true rewards.
      start: parameters of the reference.
      pairs: of the first `SHOWN` prompts, better response first.
      samples: int [N, rows], of the reference for every prompt.
      questions: prompts int [Q] and options int [Q, 4], the right one first.
    """

    world: World
    start: Params
    pairs: Data
    samples: Array
    questions: tuple[Array, Array]


def make_case(tree: Tree, seed: int, size: Size) -> Case:
    """World, reference and data of a seed."""
    world, start = topical_world(tree, BETA, seed, fit_steps=size.fit_steps)
    rng = np.random.default_rng([seed, 2])
    probs = np.exp(np.asarray(world.log_ref, np.float64))
    probs /= probs.sum(axis=1, keepdims=True)
    prompts, responses = probs.shape

    def samples(prompt: int, *shape: int) -> np.ndarray:
        return rng.choice(responses, size=shape, p=probs[prompt])

    both = np.stack([samples(x, size.rows, 2) for x in range(SHOWN)])
    rewards = np.take_along_axis(
        np.asarray(world.reward)[:SHOWN], both.reshape(SHOWN, -1), axis=1
    ).reshape(both.shape)
    order = np.argsort(-rewards, axis=-1)
    pairs = Data(
        np.take_along_axis(both, order, axis=-1),
        np.take_along_axis(rewards, order, axis=-1).astype(np.float32),
    )
    asked = rng.integers(SHOWN, prompts, QUESTIONS)
    right = np.array([samples(x, 1) for x in asked])
    others = rng.integers(0, SHOWN, (QUESTIONS, 3))
    wrong = np.array([[samples(x, 1)[0] for x in row] for row in others])
    kept = (wrong != right).all(axis=1)
    wrong = np.where(kept[:, None], wrong, (right + 1 + np.arange(3)) % responses)
    questions = asked, np.concatenate([right, wrong], axis=1)
    streams = np.stack([samples(x, size.rows) for x in range(prompts)])
    return Case(world, start, pairs, streams, questions)


def train(
    tree: Tree, case: Case, loss_name: str, weights: Array, lr: Array, size: Size
) -> Array:
    """Log-probs [N, M] of the policy at the end; pure, so it may be `jax.vmap`ped."""
    loss = make_loss(loss_name, {'beta': BETA}).fn
    plan = Plan(batch=size.batch)
    optimizer = optax.inject_hyperparams(optax.adam)(learning_rate=lr)
    prompts, rows = case.samples.shape

    def nll(logps: Array, key: Array, count: int) -> Array:
        keys = jax.random.split(key)
        x = jax.random.randint(keys[0], (size.batch,), 0, count)
        row = jax.random.randint(keys[1], (size.batch,), 0, rows)
        return -jnp.mean(logps[x, case.samples[x, row]])

    def step(carry: tuple, key: Array) -> tuple[tuple, None]:
        params, state = carry
        keys = jax.random.split(key, 3)
        shown = draw(case.pairs, plan, keys[0])
        ref = case.world.log_ref[shown.prompts[:, None], shown.responses]

        def total(params: Params) -> Array:
            logps = tree.logps(params)
            table = shown.table(logps[shown.prompts[:, None], shown.responses], ref)
            streams = weights[0] * nll(logps, keys[1], SHOWN)
            return (
                jnp.mean(loss(table)) + streams + weights[1] * nll(logps, keys[2], prompts)
            )

        updates, state = optimizer.update(jax.grad(total)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(0), size.steps)
    (params, _), _ = jax.lax.scan(step, (case.start, optimizer.init(case.start)), keys)
    return tree.logps(params)


def measures(case: Case, logps: Array) -> dict[str, float]:
    """Of a policy given its log-probs [N, M]."""
    world = case.world
    shown, other = slice(0, SHOWN), slice(SHOWN, None)
    ref = jnp.exp(world.log_ref[shown])
    r, true = (logps - world.log_ref)[shown], world.reward[shown]
    better = true[:, :, None] > true[:, None, :]
    mass = ref[:, :, None] * ref[:, None, :] * better
    right = (r[:, :, None] > r[:, None, :]) + 0.5 * (r[:, :, None] == r[:, None, :])
    asked, options = case.questions
    answers = jnp.argmax(logps[asked[:, None], options], axis=1) == 0
    backward, forward = kl(logps, world.log_ref), kl(world.log_ref, logps)
    found = {
        'accuracy': jnp.sum(mass * right) / jnp.sum(mass),
        'reward': jnp.mean(expectation(logps, world.reward)[shown]),
        'kl_shown': jnp.mean(backward[shown]),
        'forward_kl_shown': jnp.mean(forward[shown]),
        'kl_other': jnp.mean(backward[other]),
        'forward_kl_other': jnp.mean(forward[other]),
        'questions': jnp.mean(answers),
    }
    return {name: float(value) for name, value in found.items()}


def run(seeds: int, size: Size, lrs: Sequence[float]) -> list[dict[str, Any]]:
    """The start, and every method at every learning rate, in every world."""
    tree = topical_tree(size.d_model)
    cases = [make_case(tree, seed, size) for seed in range(seeds)]
    stacked = jax.tree.map(lambda *x: jnp.stack([jnp.asarray(y) for y in x]), *cases)
    rows = [
        {'method': 'start', 'lr': 0.0, 'seed': seed, **measures(case, case.world.log_ref)}
        for seed, case in enumerate(cases)
    ]
    for loss in dict.fromkeys(method.loss for method in METHODS.values()):
        mine = {name: m for name, m in METHODS.items() if m.loss == loss}

        def one(case: Case, weights: Array, lr: Array, loss: str = loss) -> Array:
            return train(tree, case, loss, weights, lr, size)

        seeds_of = jax.vmap(one, (0, None, None))
        every = jax.vmap(jax.vmap(seeds_of, (None, None, 0)), (None, 0, None))
        weights = jnp.array([[m.sft, m.text] for m in mine.values()])
        logps = jax.jit(every)(stacked, weights, jnp.array(lrs))
        for i, name in enumerate(mine):
            for j, lr in enumerate(lrs):
                for seed, case in enumerate(cases):
                    found = measures(case, logps[i, j, seed])
                    rows.append({'method': name, 'lr': lr, 'seed': seed, **found})
        print(loss, flush=True)
    return rows


AXES = {
    'forward_kl_other': 'KL(reference || policy), unseen topic',
    'questions': 'questions on the unseen topic answered',
    'forward_kl_shown': 'KL(reference || policy), prompts with pairs',
}


def draw_figure(rows: list[dict[str, Any]], file: Path) -> None:
    """Retention against expected reward: a point a learning rate, means over worlds.

    KLs, which differ by orders of magnitude, are averaged as logarithms.
    """
    figure, axes = panels(len(AXES))
    start = [row for row in rows if row['method'] == 'start']
    for ax, (key, title) in zip(axes, AXES.items(), strict=True):
        for name, method in METHODS.items():
            if method.colour:
                _line(ax, [row for row in rows if row['method'] == name], key, name)
        if key == 'questions':
            x, y = (interval(r[k] for r in start)[0] for k in ('reward', key))
            ax.plot(x, y, 'k*', markersize=9, label='reference')
            ax.legend(frameon=False, fontsize=7)
        else:
            ax.set_yscale('log')
        ax.set_title(title, loc='left', fontsize=10)
        ax.set_xlabel('expected true reward, prompts with pairs')
    save(figure, file)


def _line(ax: Axes, rows: list[dict[str, Any]], key: str, name: str) -> None:
    """A method through its learning rates, with 95 % intervals over worlds."""
    points = [[r for r in rows if r['lr'] == lr] for lr in sorted({r['lr'] for r in rows})]
    x = [interval(r['reward'] for r in point)[0] for point in points]
    if key == 'questions':
        y, half = np.array([interval(r[key] for r in point) for point in points]).T
        ends = np.array([half, half])
    else:
        logs = [interval(np.log(r[key]) for r in point) for point in points]
        middle, half = np.array(logs).T
        y = np.exp(middle)
        ends = np.array([y - np.exp(middle - half), np.exp(middle + half) - y])
    colour = METHODS[name].colour
    ax.errorbar(x, y, ends, color=colour, label=name, marker='o', markersize=4, capsize=2)


def main() -> None:
    """Writes results/neural.csv and neural.png."""
    args = arguments(__file__, __doc__, seeds=5)
    rows = run(args.seeds, Size(), LRS)
    write_csv(args.out / 'neural.csv', rows)
    draw_figure(rows, args.out / 'neural.png')
    for name, lr in dict.fromkeys((row['method'], row['lr']) for row in rows):
        mine = [row for row in rows if (row['method'], row['lr']) == (name, lr)]
        keys = list(mine[0])[3:]
        found = [f'{k} {interval(r[k] for r in mine)[0]:.3f}' for k in keys]
        print(f'{name} {lr:g}: {", ".join(found)}')


if __name__ == '__main__':
    main()
