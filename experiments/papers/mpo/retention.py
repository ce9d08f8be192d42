"""What alignment with SmolLM2-135M keeps and forgets: the shape of the paper's tables.

Claim: MPO learns the preferences, and likelihood on SFT data and text keeps skills that
  the preference data do not touch; DPO and IPO lose them.
Command: python -m experiments.papers.mpo.retention (needs `make smollm2`; runs that are
  done are skipped, so it can be stopped and started again), then
  python -m experiments.papers.mpo.tables
Data: pairs of HH-RLHF harmless-base with prompts of at most 64 tokens, responses cut at
  48; SFT: the best of eight responses to AlpacaEval prompts, cut likewise; text: passages
  of LAMBADA. Held out: 300 pairs and 60 responses, of which
  those count whose prompts fit, and 100 passages.
"""

import argparse
import dataclasses
import functools
import hashlib
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from epa_jax.config import resolve
from epa_jax.data.load import load_datasets
from epa_jax.data.streams import load_streams
from epa_jax.evals.answers import answer
from epa_jax.evals.generation import sample
from epa_jax.evals.sampling import Sampling
from epa_jax.evals.scoring import score
from epa_jax.evals.tasks import Task, read_task
from epa_jax.formats.load import load_model
from epa_jax.formats.tokenizer import load_tokenizer
from epa_jax.models.spec import ModelSpec
from epa_jax.models.transformer import Compute
from epa_jax.schema import RunConfig
from epa_jax.train import train
from epa_jax.types import Params, TokenExample
from experiments import mpo_smollm2
from experiments.papers.common import results_of
from experiments.papers.mpo.splits import write_split

DATA = Path('../shared/data')
TASKS = ('arc_easy', 'arc_challenge', 'piqa', 'copa', 'openbook_qa', 'commonsense_qa')
TASKS += ('winogrande',)
STREAMS: dict[str, Any] = {'sft.weight': 0.1, 'pretrain.weight': 0.1}
SFT_ONLY: dict[str, Any] = {'sft.weight': 0.1, 'pretrain.train': ''}
NEITHER: dict[str, Any] = {'sft.train': '', 'pretrain.train': ''}
DPO: dict[str, Any] = {'loss.name': 'dpo', 'loss.beta': 0.1, 'loss.tokens': None}
METHODS: dict[str, dict[str, Any]] = {
    'dpo': DPO | NEITHER,
    'ipo': {'loss.name': 'ipo', 'loss.beta': 0.1, 'loss.tokens': 'sum'} | NEITHER,
    'mpo': NEITHER,
    'mpo+sft': SFT_ONLY,
    'mpo+sft+text': STREAMS,
    'dpo+sft+text': DPO | STREAMS,
    'sft': {'loss.name': 'sft', 'loss.beta': None, 'loss.tokens': None} | NEITHER,
}


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is trained and measured; see the command line."""

    steps: int = 32
    questions: int = 100
    samples: int = 48


@dataclasses.dataclass(frozen=True)
class Files:
    """Data to train on and, of the same name, held-out data."""

    train: Mapping[str, Path]
    held_out: Mapping[str, Path]


@dataclasses.dataclass(frozen=True, eq=False)
class Bench:
    """What every policy is measured on.

    Attributes:
      tasks: questions by name.
      texts: held-out token examples by name; samples of the start among them, so that the
        fall of their log-prob is a KL.
    """

    tasks: Mapping[str, Task]
    texts: Mapping[str, list[TokenExample]]


def split_files(folder: Path) -> Files:
    """Pairs, SFT data and text, each in two files."""
    parts = {
        name: write_split(DATA / source, folder, count=count)
        for name, source, count in (
            ('pairs', 'hh_rlhf_harmless_test.jsonl.gz', 300),
            ('sft', 'alpaca_eval_nary.jsonl.gz', 60),
            ('text', 'bench/mosaic_lambada_openai.jsonl', 100),
        )
    }
    return Files(
        {name: train for name, (train, _) in parts.items()},
        {name: held_out for name, (_, held_out) in parts.items()},
    )


def run_config(
    method: str, lr: float, seed: int, size: Size, files: Files, changes: Mapping[str, Any]
) -> RunConfig:
    """The configuration of a run; `changes` are dotted keys, which come last."""
    config = mpo_smollm2.get_config()
    values: dict[str, Any] = {
        'workdir': f'runs/mpo_retention/{method}_{lr:g}_{seed}',
        'seed': seed,
        'steps': size.steps,
        'export': False,
        'model.remat': 'none',
        'data.train': str(files.train['pairs']),
        'data.eval_examples': 0,
        'data.max_prompt_tokens': 64,
        'data.overlong_prompt': 'drop',
        'data.max_response_tokens': 48,
        'sft.train': str(files.train['sft']),
        'sft.eval_examples': 0,
        'sft.sequences': 2,
        'pretrain.train': str(files.train['text']),
        'pretrain.eval_examples': 0,
        'pretrain.sequences': 2,
        'pretrain.max_tokens': 128,
        'optim.lr': lr,
        'log.every': 10,
        'log.eval_every': 0,
        'log.tensorboard': False,
    }
    return resolve(config_with(config, values | METHODS[method] | dict(changes)))


def config_with(config: Any, values: Mapping[str, Any]) -> Any:
    """Sets dotted keys."""
    for key, value in values.items():
        *groups, last = key.split('.')
        target = config
        for group in groups:
            target = target[group]
        target[last] = value
    return config


def prepare_bench(
    run: RunConfig, files: Files, size: Size, tasks: Mapping[str, Path]
) -> Bench:
    """Questions, held-out text and samples of the start."""
    tokenizer = load_tokenizer(run.model.path)
    loaded = functools.partial(load_datasets, tokenizer=tokenizer, min_strong=1)
    held = {name: str(path) for name, path in files.held_out.items()}
    trained = {e.prompt_key for e in loaded(run.data).train}
    pairs = loaded(dataclasses.replace(run.data, train=held['pairs']))
    streams = load_streams(
        dataclasses.replace(
            run,
            sft=dataclasses.replace(run.sft, train=held['sft']),
            pretrain=dataclasses.replace(run.pretrain, train=held['text']),
        ),
        tokenizer,
    )
    texts = {stream.name: stream.train for stream in streams}
    texts['pairs'] = [e for e in pairs.train if e.prompt_key not in trained]
    spec, params = load_model(run.model.path)
    for name in ('pairs', 'sft'):
        examples = texts[name][: size.samples]
        responses = sample(
            params,
            spec,
            Compute(),
            [example.prompt_ids for example in examples],
            Sampling(run.data.max_response_tokens, (int(tokenizer.eos_token_id),)),
            key=jax.random.key(0),
        )
        texts[f'own_{name}'] = [
            dataclasses.replace(example, response_ids=(response,))
            for example, response in zip(examples, responses, strict=True)
        ]
    questions = {
        name: read_task(str(path), limit=size.questions) for name, path in tasks.items()
    }
    return Bench(questions, texts)


def fingerprint(bench: Bench) -> str:
    """Of all that is measured; runs are compared with a start of the same."""
    digest = hashlib.sha256()
    for name in sorted(bench.texts):
        for example in bench.texts[name]:
            for ids in (example.prompt_ids, *example.response_ids):
                digest.update(ids.tobytes() + b'|')
    for name in sorted(bench.tasks):
        for question in bench.tasks[name].questions:
            digest.update(repr((question.options, question.gold)).encode())
    return digest.hexdigest()[:16]


def measure(
    bench: Bench, params: Params, spec: ModelSpec, run: RunConfig
) -> dict[str, Any]:
    """Log-probs of every question's options and of every held-out response."""
    tokenizer = load_tokenizer(run.model.path)
    tasks = {
        name: answer(task, params, spec, Compute(), tokenizer, rows=2)
        for name, task in bench.tasks.items()
    }
    texts = {}
    for name, examples in bench.texts.items():
        prompts = [example.prompt_ids for example in examples]
        answers = [example.response_ids for example in examples]
        found = score(params, spec, Compute(), prompts, answers, rows=2).logps
        texts[name] = {
            'logps': found.tolist(),
            'tokens': [[len(ids) for ids in responses] for responses in answers],
        }
    return {
        'bench': fingerprint(bench),
        'tasks': {name: result.summary() for name, result in tasks.items()},
        'questions': {name: result.records() for name, result in tasks.items()},
        'texts': texts,
    }


def grid(args: argparse.Namespace) -> Iterator[tuple[str, float, int]]:
    """Runs in the order in which they are done: all methods before the next rate."""
    for seed, lr in itertools.product(range(args.seeds), args.lrs):
        for method in args.methods:
            yield method, lr, seed


def train_and_measure(run: RunConfig, bench: Bench) -> dict[str, Any]:
    """What a run learned and kept; its checkpoints are deleted."""
    result = train(run)
    out = {
        'summary': result.summary,
        **measure(bench, result.params, result.spec, run),
    }
    shutil.rmtree(result.folder)
    return out


def main() -> None:
    """Writes a JSON file for the start and each run."""
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    version = commit()
    size = Size(args.steps, args.questions)
    files = split_files(Path('runs/mpo_retention'))
    tasks = {name: DATA / f'bench/mosaic_{name}.jsonl' for name in TASKS}
    tasks['lambada'] = files.held_out['text']  # of the kind that a stream trains on
    changes = {'model.path': str(args.model)}
    first = run_config('mpo+sft+text', args.lrs[0], 0, size, files, changes)
    bench = prepare_bench(first, files, size, tasks)
    if not (args.out / 'start.json').exists():
        spec, params = load_model(first.model.path)
        start = measure(bench, params, spec, first)
        write(args.out / 'start.json', {'commit': version} | start)
    for method, lr, seed in grid(args):
        path = args.out / f'{method}_{lr:g}_{seed}.json'
        if path.exists():
            continue
        began = time.perf_counter()
        found = train_and_measure(run_config(method, lr, seed, size, files, changes), bench)
        seconds = time.perf_counter() - began
        about = {'method': method, 'lr': lr, 'seed': seed, 'commit': version}
        write(path, about | {'wall_seconds': seconds} | found)
        print(f'{path} {seconds:.0f} s', flush=True)
        jax.clear_caches()


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n', 1)[0])
    add = parser.add_argument
    add('--model', type=Path, default=Path('models/SmolLM2-135M-Instruct.gguf'))
    add('--out', type=Path, default=results_of(__file__) / 'retention')
    add('--methods', nargs='+', default=list(METHODS), choices=list(METHODS))
    add('--lrs', nargs='+', type=float, default=[3e-5, 1e-5, 1e-4])
    add('--seeds', type=int, default=1, help='how many')
    add('--steps', type=int, default=Size.steps, help='updates of 8 pairs')
    add('--questions', type=int, default=Size.questions, help='of each task')
    return parser.parse_args()


def commit() -> str:
    """The checkout's commit."""
    out = subprocess.run(
        ['git', 'rev-parse', '--short', 'HEAD'], capture_output=True, text=True, check=False
    )
    return out.stdout.strip()


def write(path: Path, value: Mapping[str, Any]) -> None:
    """Writes JSON with short numbers, all or nothing."""
    part = path.with_suffix('.part')
    part.write_text(json.dumps(_short(value)) + '\n', 'utf-8')
    part.rename(path)


def _short(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _short(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_short(each) for each in value]
    return float(f'{value:.6g}') if isinstance(value, float | np.floating) else value


if __name__ == '__main__':
    main()
