"""A real language model with a known reward: sad stories from stories260k.

Claim: at matched steps EPA 1:1:2 and 1:1:8 are nearer to the slope-1 line and earn more
  reward at equal KL than DPO and IPO.
Command: python -m experiments.papers.epa.stories --model ../shared/data/stories260k
  (first: pip install vaderSentiment==3.3.2)
Model: a pretrained LLaMA of 260 thousand parameters (any Hugging Face folder of stories).
Reward: -2 times the compound score of VADER (vaderSentiment), so sad stories are good.
Data: openings of 12 tokens, two continuations each of at most 64 tokens, all sampled from
  the model; Bradley-Terry labels. Measured on other openings: r_theta on 8 samples of the
  reference, KL and reward on 4 fresh samples of the policy.
"""

import argparse
import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from transformers import PreTrainedTokenizerBase

from epa_jax.data import packing
from epa_jax.data.negatives import NegativeRule
from epa_jax.data.pipeline import Pipeline, Visits
from epa_jax.evals.generation import sample
from epa_jax.evals.linearity import linearity
from epa_jax.evals.scoring import score
from epa_jax.formats.load import load_model
from epa_jax.formats.tokenizer import load_tokenizer
from epa_jax.losses import make_loss
from epa_jax.models.spec import ModelSpec
from epa_jax.models.transformer import Compute
from epa_jax.train_step import Objective
from epa_jax.types import Params, Role, TokenExample
from experiments.papers.epa.common import (
    COLOURS,
    RESULTS,
    interval,
    panels,
    save,
    write_csv,
)

OPENING, LENGTH = 12, 64
ROUNDS = 16  # of samples in search of different openings
COMPUTE = Compute()
METHODS = {
    'DPO': ('dpo', 0),
    'IPO': ('ipo', 0),
    'EPA 1:1:2': ('epa', 2),
    'EPA 1:1:8': ('epa', 8),
}
DRAWN = {
    'DPO': COLOURS['DPO'],
    'IPO': COLOURS['other'],
    'EPA 1:1:2': COLOURS['EPA'],
    'EPA 1:1:8': COLOURS['IPM'],
}
Reward = Callable[[str], float]
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of the experiment.

    Attributes:
      openings: to train on, two continuations each.
      held_out: openings to measure on.
      own: reference samples of each of those.
      fresh: samples of a policy to each of those.
      batch: openings of a step.
      marks: steps after which a policy is measured; the last one ends training.
      lr: of Adam.
      beta: inverse temperature.
    """

    openings: int = 960
    held_out: int = 64
    own: int = 8
    fresh: int = 4
    batch: int = 16
    marks: tuple[int, ...] = (20, 40, 80, 160)
    lr: float = 3e-5
    beta: float = 0.25


@dataclasses.dataclass(frozen=True)
class Storyteller:
    """A pretrained model and what it can be asked for."""

    spec: ModelSpec
    params: Params
    tokenizer: PreTrainedTokenizerBase
    reward: Reward

    def continuations(
        self, params: Params, openings: Sequence[np.ndarray], each: int, key: jax.Array
    ) -> list[list[np.ndarray]]:
        """`each` samples of a policy after every opening."""
        flat = sample(
            params,
            self.spec,
            COMPUTE,
            [opening for opening in openings for _ in range(each)],
            max_new_tokens=LENGTH,
            eos_id=self.tokenizer.eos_token_id,
            key=key,
        )
        return [flat[i : i + each] for i in range(0, len(flat), each)]

    def openings(self, count: int, key: jax.Array) -> list[np.ndarray]:
        """Different beginnings of stories, beginning of sequence included."""
        bos = np.array([self.tokenizer.bos_token_id], np.int32)
        found: dict[bytes, np.ndarray] = {}
        for part in jax.random.split(key, ROUNDS):
            drawn = sample(
                self.params,
                self.spec,
                COMPUTE,
                [bos] * count,
                max_new_tokens=OPENING,
                eos_id=self.tokenizer.eos_token_id,
                key=part,
            )
            found |= {ids.tobytes(): ids for ids in drawn if len(ids) == OPENING}
            if len(found) >= count:
                return [np.concatenate([bos, ids]) for ids in list(found.values())[:count]]
        raise ValueError(
            f'{count * ROUNDS} samples have {len(found)} different openings; '
            f'expected {count}'
        )

    def rewards(self, answers: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
        """True reward of every continuation, [N, K]."""
        texts = [
            [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in row]
            for row in answers
        ]
        return np.array([[self.reward(text) for text in row] for row in texts])

    def log_ratios(
        self,
        params: Params,
        openings: Sequence[np.ndarray],
        answers: list[list[np.ndarray]],
    ) -> np.ndarray:
        """log(policy / reference) of every continuation, [N, K]."""
        policy = score(params, self.spec, COMPUTE, openings, answers)
        return policy - score(self.params, self.spec, COMPUTE, openings, answers)


def vader() -> Reward:
    """Minus twice the compound score, from -2 (happy) to 2 (sad)."""
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        sys.exit('the reward needs a lexicon: pip install vaderSentiment==3.3.2')
    analyser = SentimentIntensityAnalyzer()
    return lambda text: -2 * analyser.polarity_scores(text)['compound']


def labelled(
    teller: Storyteller, openings: list[np.ndarray], key: jax.Array, seed: int
) -> list[TokenExample]:
    """A pair for each opening, ordered by Bradley-Terry."""
    answers = teller.continuations(teller.params, openings, 2, key)
    rewards = teller.rewards(answers)
    noise = np.random.default_rng(seed).gumbel(size=rewards.shape)
    order = np.argsort(-(rewards + noise), axis=1)
    return [
        TokenExample(
            prompt_ids=opening,
            response_ids=tuple(pair[i] for i in places),
            roles=np.array([Role.CHOSEN, Role.REJECTED], np.int8),
            ratings=rewards[n, places].astype(np.float32),
            prompt_key=opening.tobytes(),
            origin=f'opening {n}',
        )
        for n, (opening, pair, places) in enumerate(
            zip(openings, answers, order, strict=True)
        )
    ]


def train(
    teller: Storyteller,
    examples: list[TokenExample],
    method: str,
    sizes: Sizes,
    seed: int,
    measure: Callable[[int, Params, int, float], None],
) -> None:
    """Trains from the reference; calls measure(step, params, tokens, seconds) at marks."""
    name, n_weak = METHODS[method]
    objective = Objective(teller.spec, COMPUTE, make_loss(name, {'beta': sizes.beta}))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(sizes.lr))
    rule = NegativeRule(seed, 1, n_weak, 'any')
    longest = 1 + OPENING + rule.responses * LENGTH
    layout = packing.Layout(sizes.batch, longest, 4, rule.responses)  # one row a prompt
    visits = Visits(len(examples), sizes.batch, seed, shuffle=True, resample=True)
    batches = Pipeline(examples, rule, visits, layout).steps()

    gradients = jax.jit(objective.gradients)

    @jax.jit
    def update(params: Params, state: Any, total: Any) -> tuple[Params, Any]:
        grads = jax.tree.map(lambda g: g / total.prompts, total.grads)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state

    params, state, tokens, seconds = teller.params, optimizer.init(teller.params), 0, 0.0
    for step in range(1, sizes.marks[-1] + 1):
        micro_batches = next(batches)
        began = time.perf_counter()
        parts = [gradients(params, batch, teller.params) for batch in micro_batches]
        total = functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), parts)
        params, state = jax.block_until_ready(update(params, state, total))
        seconds += time.perf_counter() - began
        tokens += sum(packing.real_tokens(batch) for batch in micro_batches)
        if step in sizes.marks:
            measure(step, params, tokens, seconds)


def one_seed(teller: Storyteller, sizes: Sizes, seed: int) -> list[Row]:
    """Every method on the same data, measured at every mark."""
    keys = jax.random.split(jax.random.key(seed), 5)
    both = teller.openings(sizes.openings + sizes.held_out, keys[0])
    held_out, openings = both[: sizes.held_out], both[sizes.held_out :]
    examples = labelled(teller, openings, keys[1], seed)
    own = teller.continuations(teller.params, held_out, sizes.own, keys[2])
    true = teller.rewards(own)
    rows: list[Row] = []

    def measure(
        method: str, step: int, params: Params, tokens: int, seconds: float
    ) -> None:
        r_theta = sizes.beta * teller.log_ratios(params, held_out, own)
        line = linearity(r_theta, true)
        fresh = teller.continuations(params, held_out, sizes.fresh, keys[3])
        rows.append(
            {
                'method': method,
                'seed': seed,
                'step': step,
                'tokens': tokens,
                'seconds': seconds,
                'pearson': line.mean_pearson,
                'slope1_error': line.mean_slope1_error,
                'slope1_root': line.mean_slope1_root,
                'kl': float(teller.log_ratios(params, held_out, fresh).mean()),
                'reward': float(teller.rewards(fresh).mean()),
            }
        )
        print(f'seed {seed} {method} step {step}:', _words(rows[-1]), flush=True)

    start = {'reward': float(true.mean()), 'slope1_error': float(true.var(axis=1).mean())}
    rows.append(
        {
            'method': 'reference', 'seed': seed, 'step': 0, 'tokens': 0, 'seconds': 0.0,
            'pearson': float('nan'), **start,
            'slope1_root': float(true.std(axis=1).mean()), 'kl': 0.0,
        }
    )  # fmt: skip
    for method in METHODS:
        train(teller, examples, method, sizes, seed, functools.partial(measure, method))
    return rows


def _words(row: Row) -> str:
    shown = ('pearson', 'slope1_error', 'kl', 'reward')
    return ', '.join(f'{key} {row[key]:.3f}' for key in shown)


def at_equal_tokens(
    rows: list[Row], tokens: float, key: str, method: str
) -> tuple[float, float]:
    """Mean and interval over seeds of a metric, interpolated at a number of tokens."""
    found = []
    for seed in sorted({row['seed'] for row in rows}):
        mine = [r for r in rows if (r['method'], r['seed']) == (method, seed)]
        found.append(np.interp(tokens, [r['tokens'] for r in mine], [r[key] for r in mine]))
    return interval(found)


def draw(rows: list[Row], file: Path) -> None:
    """Pearson and slope-1 error against tokens, and reward against KL."""
    figure, axes = panels(3)
    reference = interval(r['reward'] for r in rows if r['method'] == 'reference')[0]
    for method, colour in DRAWN.items():
        mine = [row for row in rows if row['method'] == method]
        steps = sorted({row['step'] for row in mine})
        at = {
            key: np.array(
                [interval(r[key] for r in mine if r['step'] == step) for step in steps]
            ).T
            for key in ('tokens', 'pearson', 'slope1_error', 'kl', 'reward')
        }
        style = {'color': colour, 'marker': 'o', 'capsize': 2, 'label': method}
        axes[0].errorbar(at['tokens'][0], *at['pearson'], **style)
        axes[1].errorbar(at['tokens'][0], *at['slope1_error'], **style)
        axes[2].errorbar(
            at['kl'][0], at['reward'][0], at['reward'][1], at['kl'][1], **style
        )
    axes[2].scatter([0], [reference], color=COLOURS['exact'], label='reference', zorder=3)
    for ax, title in zip(axes[:2], ('Pearson coefficient', 'slope-1 error'), strict=True):
        ax.set_title(title, loc='left', fontsize=10)
        ax.set_xlabel('tokens trained on')
        ax.set_xscale('log')
    axes[2].set_title('True reward against KL', loc='left', fontsize=10)
    axes[2].set_xlabel('KL to the reference, nats')
    axes[2].legend(frameon=False, fontsize=8)
    save(figure, file)


def main() -> None:
    """Writes results/stories.csv and stories.png."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n', 1)[0])
    parser.add_argument('--model', required=True, help='a Hugging Face folder')
    parser.add_argument('--out', type=Path, default=RESULTS)
    parser.add_argument('--seeds', type=int, default=5)
    args = parser.parse_args()
    spec, params = load_model(args.model, 'float32')
    teller = Storyteller(spec, params, load_tokenizer(args.model), vader())
    rows = [row for seed in range(args.seeds) for row in one_seed(teller, Sizes(), seed)]
    write_csv(args.out / 'stories.csv', rows)
    draw(rows, args.out / 'stories.png')


if __name__ == '__main__':
    main()
