"""DPO and EPA in a small world whose true reward is known: python -m epa_jax.quickstart.

Everything is made here, from the language to the model, so it needs no data and no
network, and a few minutes of two CPU cores.
"""

import argparse
import contextlib
import dataclasses
import itertools
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from epa_jax import config
from epa_jax.models.transformer import num_params
from epa_jax.run_folder import write_json
from epa_jax.train import USER_ERRORS, TrainResult, show_log, train
from epa_jax.types import Params
from epa_jax.world import figure, files, table
from epa_jax.world.language import Prompt
from epa_jax.world.measure import Judge, Outcome, World

NEXT = (
    'python -m epa_jax.train --config=experiments/quickstart_pairs.py '
    '--config.loss.name=ipo --config.workdir=runs/quickstart_ipo'
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sizes of the quickstart.

    Attributes:
      d_model: width of the model.
      n_layers: its layers.
      demonstrations: responses of the language that the reference is fitted to.
      sft_steps: updates of that, of 64 demonstrations each.
      sft_lr: peak learning rate of that.
      pairs: pairs of reference samples to train on, one a prompt.
      held_out: held-out prompts, each with one pair.
      steps: updates of DPO and of EPA, of 32 pairs each.
      lr: peak learning rate of both.
      beta: inverse temperature of both. The true rewards of the reference's samples have
        a standard deviation near 1, so exp(reward / beta) reweighs them by a few nats.
      own: reference samples to each held-out prompt for the linearity.
      off_topic: responses to prompts of other topics besides those.
      fresh: samples of each policy to each held-out prompt.
    """

    d_model: int = 160
    n_layers: int = 3
    demonstrations: int = 9600
    sft_steps: int = 250
    sft_lr: float = 2e-3
    pairs: int = 4800
    held_out: int = 200
    steps: int = 150
    lr: float = 3e-4
    beta: float = 0.5
    own: int = 8
    off_topic: int = 4
    fresh: int = 4


SMOKE = Settings(
    d_model=32,
    n_layers=1,
    demonstrations=128,
    sft_steps=4,
    pairs=64,
    held_out=16,
    steps=4,
    own=3,
    off_topic=2,
    fresh=2,
)


class Quickstart:
    """The stages, in order; each says what it does and how long it took."""

    def __init__(self, out: Path, settings: Settings, seed: int, console: Console):
        self.out = out
        self.settings = settings
        self.seed = seed
        self.console = console
        self.spec = files.model_spec(settings.d_model, settings.n_layers)
        self.tokenizer = files.make_tokenizer()
        self.train_prompts, self.held_out = files.split_prompts(settings.held_out, seed)

    def run(self) -> list[Outcome]:
        """Everything; returns what the table shows."""
        began = time.perf_counter()
        with self._stage(1, f'Fit a LLaMA of {self._size()} to the language (SFT)'):
            reference = self._fit_reference()
        with self._stage(
            2, 'Draw pairs from it, labelled by Bradley-Terry with the true reward'
        ):
            gaps = self._write_pairs(reference)
        with self._stage(3, 'DPO from that reference'):
            dpo = self._align('dpo', n_weak=0)
        with self._stage(4, 'EPA 1:1:2 from the same reference: 2 weak negatives more'):
            epa = self._align('epa', n_weak=2)
        with self._stage(5, 'Measure all three on held-out prompts'):
            outcomes = self._measure(reference, dpo, epa)
        self._conclude(outcomes, gaps, time.perf_counter() - began)
        return outcomes

    def _size(self) -> str:
        return f'{num_params(self.spec) / 1e6:.2f} million parameters'

    @contextlib.contextmanager
    def _stage(self, number: int, title: str) -> Iterator[None]:
        began = time.perf_counter()
        self.console.print(f'\n{number}/5  {title}', style='bold')
        yield
        self._say(f'took {time.perf_counter() - began:.0f} s')

    def _say(self, text: str) -> None:
        self.console.print(f'     {text}', soft_wrap=True)

    def _fit_reference(self) -> TrainResult:
        s = self.settings
        start = self.out / 'untrained'
        files.write_untrained_model(start, self.spec, self.seed)
        for name, prompts, count, seed in (
            ('demonstrations', self.train_prompts, s.demonstrations, self.seed),
            ('demonstrations_held_out', self.held_out, s.held_out, self.seed + 1),
        ):
            path = self.out / f'{name}.jsonl'
            files.write_demonstrations(path, prompts, count, seed)
        cfg = self._config('sft', 'demonstrations', start)
        cfg.steps = s.sft_steps
        cfg.data.n_strong = 0
        cfg.reference.mode = 'none'
        cfg.optim.lr = s.sft_lr
        cfg.batch.prompts = 64
        return train(config.resolve(cfg))

    def _write_pairs(self, reference: TrainResult) -> np.ndarray:
        """Writes both files; returns by how much the true reward agrees, held out."""
        s = self.settings
        prompts = self.train_prompts[: s.pairs]
        for name, part, stream in (
            ('pairs', prompts, 2),
            ('pairs_held_out', self.held_out, 3),
        ):
            world = self._world(part)
            drawn = world.sample(self._params(reference), each=2, stream=stream)
            texts = [(world.text(a), world.text(b)) for a, b in drawn.token_ids]
            records = files.label_pairs(part, texts, self.seed + stream)
            files.write_jsonl(self.out / f'{name}.jsonl', records)
            gaps = np.array([r['reward_chosen'] - r['reward_rejected'] for r in records])
            self._say(
                f'{name}.jsonl: {len(records)} pairs, {len(part) - len(records)} left out '
                f'as equal; the true reward agrees with {np.mean(gaps > 0):.1%} of labels '
                f'(ties {np.mean(gaps == 0):.1%})'
            )
        return gaps

    def _align(self, loss: str, n_weak: int) -> TrainResult:
        s = self.settings
        cfg = self._config(loss, 'pairs', self.out / 'sft' / 'export')
        cfg.steps = s.steps
        cfg.data.n_strong = 1
        cfg.data.n_weak = n_weak
        cfg.loss.beta = s.beta
        cfg.optim.lr = s.lr
        cfg.batch.prompts = 32
        return train(config.resolve(cfg))

    def _config(self, loss: str, data: str, start: Path) -> ConfigDict:
        """What all three runs have in common."""
        cfg = config.defaults()
        cfg.workdir = str(self.out / loss)
        cfg.seed = self.seed
        cfg.model.path = str(start)
        cfg.model.remat = 'dots'
        cfg.data.train = str(self.out / f'{data}.jsonl')
        cfg.data.eval = str(self.out / f'{data}_held_out.jsonl')
        cfg.data.max_prompt_tokens = 16
        cfg.data.max_response_tokens = 32
        cfg.data.overlong_response = 'error'
        cfg.loss.name = loss
        cfg.reference.cache_dir = str(self.out / 'reference_cache')
        cfg.optim.b2 = 0.98
        cfg.batch.row_length = 256
        cfg.batch.rows = -(-7 // jax.device_count()) * jax.device_count()
        cfg.log.every = 30
        cfg.log.tensorboard = False
        return cfg

    def _world(self, prompts: Sequence[Prompt]) -> World:
        return World(prompts, self.tokenizer, self.spec, self.seed)

    def _params(self, result: TrainResult) -> Params:
        """On one device, whatever the mesh of the run."""
        return jax.device_put(jax.device_get(result.params), jax.devices()[0])

    def _measure(
        self, reference: TrainResult, dpo: TrainResult, epa: TrainResult
    ) -> list[Outcome]:
        s = self.settings
        world = self._world(self.held_out)
        ref_params = self._params(reference)
        own = world.sample(ref_params, each=s.own, stream=4)
        responses = world.with_off_topic(own, s.off_topic)
        judge = Judge(world, ref_params, s.beta, s.fresh, responses)
        before = dpo.summary['eval_first']
        outcomes = [
            judge.outcome('SFT', ref_params, *_on_pairs(before)),
            judge.outcome('DPO', self._params(dpo), *_on_pairs(dpo.summary['eval_last'])),
            judge.outcome(
                'EPA 1:1:2', self._params(epa), *_on_pairs(epa.summary['eval_last'])
            ),
        ]
        figure.draw(self.out / 'figure.png', outcomes, responses.rewards, own.rewards)
        return outcomes

    def _conclude(self, outcomes: list[Outcome], gaps: np.ndarray, seconds: float) -> None:
        s = self.settings
        self.console.print()
        for line in table.lines(outcomes):
            self.console.print(line, soft_wrap=True)
        self.console.print()
        for line in table.notes(gaps, s.own, s.off_topic, s.fresh, s.beta):
            self.console.print(line, style='dim')
        record = {
            'seconds': seconds,
            'seed': self.seed,
            'settings': dataclasses.asdict(s),
            'held_out_pairs': len(gaps),
            'true_reward_accuracy': table.agreement(gaps),
            'outcomes': [table.as_record(outcome) for outcome in outcomes],
        }
        write_json(self.out / 'results.json', record)
        self.console.print(
            f'\nfigure   {self.out / "figure.png"}\n'
            f'numbers  {self.out / "results.json"}\n'
            f'models   {self.out}/{{sft,dpo,epa}}/export (Hugging Face folders)\n'
            f'took     {seconds:.0f} s\n\n'
            f'next     {self._next()}',
            soft_wrap=True,
        )

    def _next(self) -> str:
        """A command that trains with another loss on the same pairs."""
        if self.out == Path('runs/quickstart'):
            return NEXT
        return (
            f'{NEXT} --config.model.path={self.out}/sft/export '
            f'--config.data.train={self.out}/pairs.jsonl '
            f'--config.data.eval={self.out}/pairs_held_out.jsonl'
        )


def _on_pairs(metrics: Mapping[str, float]) -> tuple[float, float]:
    """Accuracy and margin on the held-out pairs."""
    return metrics['eval/rewards/accuracies'], metrics['eval/rewards/margins']


def new_folder(out: str | None) -> Path:
    """The folder asked for, or the first of runs/quickstart, runs/quickstart_2, ...

    Raises:
      ConfigError: the folder asked for is not empty, or is a file.
    """
    if out is not None:
        path = Path(out)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise config.ConfigError(f'--out={out}: not an empty folder; name a new one')
    else:
        names = (f'quickstart_{i}' if i > 1 else 'quickstart' for i in itertools.count(1))
        path = next(p for p in (Path('runs') / n for n in names) if not p.exists())
    path.mkdir(parents=True, exist_ok=True)
    return path


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog='python -m epa_jax.quickstart', description=__doc__.split('\n\n')[0]
    )
    parser.add_argument('--out', help='folder to write; a new one in runs/ unless given')
    parser.add_argument('--seed', type=int, default=0, help='of every random choice')
    parser.add_argument('--smoke', action='store_true', help='tiny sizes, to see it run')
    args = parser.parse_args(argv)
    if not 0 <= args.seed < 2**32:
        parser.error(f'--seed={args.seed}: expected 0 to 4294967295')
    show_log()
    logging.getLogger('epa_jax').setLevel(logging.WARNING)
    logging.getLogger('epa_jax.loop').setLevel(logging.INFO)  # the evaluations
    console = Console(highlight=False, markup=False)
    try:
        settings = SMOKE if args.smoke else Settings()
        Quickstart(new_folder(args.out), settings, args.seed, console).run()
    except USER_ERRORS as error:
        sys.exit(f'{type(error).__name__}: {error}')


if __name__ == '__main__':
    main()
