"""Reward against KL: python -m epa_jax.frontier RUN ... --prompts FILE --reward MODEL."""

import argparse
import dataclasses
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from epa_jax import sharding
from epa_jax.commands import show_errors
from epa_jax.comparison.frontier import Point, as_csv, draw, point, to_json
from epa_jax.comparison.runs import Group, Run, grouped, read_run
from epa_jax.config import ConfigError, from_flat
from epa_jax.data.prompts import Prompt, encode_prompts, read_prompts
from epa_jax.evals.generation import sample
from epa_jax.evals.rewards import Reward, open_reward_model
from epa_jax.evals.sampling import Sampling
from epa_jax.evals.scoring import ROWS, score
from epa_jax.policy import Policy, base_model, load_policy, saved_steps
from epa_jax.schema import DataConfig, MeshConfig
from epa_jax.storage import argument as local_path
from epa_jax.storage import is_remote, local
from epa_jax.types import Message, as_messages


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog='python -m epa_jax.frontier',
        description='KL to the reference and reward of fresh samples, for each run and, '
        'with --checkpoints, for each of its checkpoints.',
    )
    add = parser.add_argument
    add('runs', nargs='+', type=local_path, help='run folders')
    add('--prompts', required=True, help='a file, data set or hub name')
    add('--reward', required=True, help='a reward model, or module:function')
    add('--out', type=local_path, required=True, help='folder for frontier.csv and .png')
    add('--checkpoints', action='store_true', help='every checkpoint, not the end alone')
    add('--limit', type=int, default=0, help='prompts to read at most; 0: all')
    add('--n', type=int, default=4, help='samples of each prompt')
    add('--max_new_tokens', type=int, default=256, help='of a response')
    add('--estimate', default='k3', choices=('k1', 'k2', 'k3'), help='of KL, drawn')
    add('--dtype', default='float32', choices=('float32', 'bfloat16'), help='of products')
    add('--rows', type=int, default=ROWS, help='rows a device computes together')
    add('--seed', type=int, default=0, help='of the samples')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Prints a line for each policy; writes the table and the figure."""
    args = arguments(argv)
    mesh = sharding.make_mesh(MeshConfig())
    groups = grouped([read_run(folder) for folder in args.runs])
    prompts = read_prompts(args.prompts, args.limit)
    reward = reward_of(args.reward, mesh, args.dtype)
    measure = Measure(args, mesh, prompts, reward)
    firsts = {reference_of(run): run for group in groups for run in group.runs}
    starts = {key: measure.reference(run) for key, run in firsts.items()}
    points = list(starts.values())
    for start in points:
        _print(start)
    for group in groups:
        for run in group.runs:
            mine = []
            for step in saved_steps(run.folder) if args.checkpoints else [None]:
                mine.append(measure.run(group, run, step))
                _print(mine[-1])
            points += mine
            _save(run, [starts[reference_of(run)], *mine], args)
    if jax.process_index() == 0:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / 'frontier.csv').write_text(as_csv(points), 'utf-8')
        draw(points, args.estimate).savefig(args.out / 'frontier.png')
        print(f'figure {args.out / "frontier.png"}')


def _save(run: Run, points: Sequence[Point], args: argparse.Namespace) -> None:
    """Leaves a run's points in its evals/, for `compare`."""
    if jax.process_index() == 0:
        names = ('prompts', 'reward', 'limit', 'n', 'max_new_tokens', 'dtype', 'seed')
        out = to_json(points, {name: getattr(args, name) for name in names})
        path = run.folder / 'evals' / 'frontier.json'
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(out, indent=2) + '\n', 'utf-8')


def _print(p: Point) -> None:
    where = p.folder + ('' if p.step is None else f' step {p.step}')
    if jax.process_index() == 0:
        print(f'{p.label} {where}: KL {p.kl["k3"]} reward {p.reward}', flush=True)


def reference_of(run: Run) -> tuple[Path, Path]:
    """The model that the run's KL is to, and the tokenizer."""
    base, tokenizer = base_model(run.folder)
    return local(run.config.get('reference.path') or base), tokenizer


def reward_of(name: str, mesh: Mesh, dtype: str) -> Reward:
    """A reward model's folder, or a function of conversations as module:function.

    Raises:
      ConfigError: no such function.
      FormatError: no such reward model.
    """
    if is_remote(name) or Path(name).exists() or ':' not in name:
        return open_reward_model(local(name), mesh, dtype=dtype)
    module, _, function = name.partition(':')
    sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f'--reward {name}: {error}') from error
    finally:
        sys.path.pop(0)


@dataclasses.dataclass(frozen=True)
class Measure:
    """What is the same for all policies."""

    args: argparse.Namespace
    mesh: Mesh
    prompts: Sequence[Prompt]
    reward: Reward

    def reference(self, run: Run) -> Point:
        """The reference of a run itself: KL 0."""
        policy = self._load(*reference_of(run))
        cfg = from_flat(run.config).data
        return self._point('reference', '', None, policy, None, cfg)

    def run(self, group: Group, run: Run, step: int | None) -> Point:
        """A run's policy at a step."""
        path, tokenizer = reference_of(run)
        policy = self._load(run.folder, None, step)
        reference = self._load(path, tokenizer)
        cfg = from_flat(run.config).data
        return self._point(group.label, str(run.folder), step, policy, reference, cfg)

    def _load(self, path: Path, tokenizer: Path | None, step: int | None = None) -> Policy:
        return load_policy(
            path, mesh=self.mesh, dtype=self.args.dtype, step=step, tokenizer=tokenizer
        )

    def _point(
        self,
        label: str,
        folder: str,
        step: int | None,
        policy: Policy,
        reference: Policy | None,
        cfg: DataConfig,
    ) -> Point:
        n = self.args.n
        ids = encode_prompts(self.prompts, policy.tokenizer, cfg)
        flat = self._sample(policy, [x for x in ids for _ in range(n)])
        answers = [flat[i : i + n] for i in range(0, len(flat), n)]
        ratios = np.zeros((len(ids), n))
        if reference is not None:
            ratios = self._logps(policy, ids, answers)
            ratios -= self._logps(reference, ids, answers)
        return point(
            label,
            folder,
            step,
            ratios,
            self._rewards(policy, answers),
            np.array([[len(a) for a in row] for row in answers]),
            self.args.seed,
        )

    def _sample(self, policy: Policy, ids: Sequence[np.ndarray]) -> list[np.ndarray]:
        eos = policy.tokenizer.eos_token_id
        return sample(
            policy.params,
            policy.spec,
            policy.compute,
            ids,
            Sampling(self.args.max_new_tokens, () if eos is None else (int(eos),)),
            key=jax.random.key(self.args.seed),
            mesh=policy.mesh,
        )

    def _logps(
        self,
        policy: Policy,
        ids: Sequence[np.ndarray],
        answers: Sequence[Sequence[np.ndarray]],
    ) -> np.ndarray:
        return score(
            policy.params,
            policy.spec,
            policy.compute,
            ids,
            answers,
            mesh=policy.mesh,
            rows=self.args.rows,
        ).logps.astype(np.float64)

    def _rewards(
        self, policy: Policy, answers: Sequence[Sequence[np.ndarray]]
    ) -> np.ndarray:
        conversations = [
            (
                *as_messages(prompt.prompt),
                Message(
                    'assistant', str(policy.tokenizer.decode(a, skip_special_tokens=True))
                ),
            )
            for prompt, row in zip(self.prompts, answers, strict=True)
            for a in row
        ]
        found = np.asarray(self.reward(conversations), np.float64)
        if found.shape != (len(conversations),) or not np.isfinite(found).all():
            raise ConfigError(
                f'--reward {self.args.reward}: expected {len(conversations)} finite '
                f'numbers, found shape {found.shape}'
            )
        return found.reshape(len(answers), -1)


def run_main() -> None:
    """Shows bad input as one message."""
    show_errors(main)


if __name__ == '__main__':
    run_main()
