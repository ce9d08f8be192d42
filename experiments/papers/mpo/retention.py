"""What alignment with SmolLM2-135M keeps and forgets: the shape of the paper's tables.

Claim: the paper's, that MPO learns the preferences, that likelihood on SFT data and text
  keeps skills that the preference data do not touch, and that DPO and IPO lose them. What
  was found, README.md says.
Command: python -m experiments.papers.mpo.retention (needs `make smollm2`; runs that are
  done are skipped, so it can be stopped and started again), then
  python -m experiments.papers.mpo.tables
Data: pairs of HH-RLHF harmless-base with prompts of at most 64 tokens, responses cut at
  48; SFT: the best of eight responses to AlpacaEval prompts, cut likewise; text: passages
  of LAMBADA. Held out: 300 pairs and 60 responses, of which those count whose prompts
  fit, and 100 passages.
"""

import argparse
import dataclasses
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

from epa_jax.config import changed, resolve
from epa_jax.formats.load import load_model
from epa_jax.schema import RunConfig
from epa_jax.train import train
from experiments import mpo_smollm2
from experiments.papers.common import results_of
from experiments.papers.mpo.bench import Bench, held_out, measure, questions, samples
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
    prompts: int = 8
    rows: int = 0
    questions: int = 100
    samples: int = 48


@dataclasses.dataclass(frozen=True)
class Files:
    """Data to train on and, of the same name, held-out data."""

    train: Mapping[str, Path]
    held_out: Mapping[str, Path]


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
        'batch.prompts': size.prompts,
        'batch.rows': size.rows,
        'sft.train': str(files.train['sft']),
        'sft.eval_examples': 0,
        'sft.sequences': size.prompts // 4,
        'pretrain.train': str(files.train['text']),
        'pretrain.eval_examples': 0,
        'pretrain.sequences': size.prompts // 4,
        'pretrain.max_tokens': 128,
        'optim.lr': lr,
        'log.every': 10,
        'log.eval_every': 0,
        'log.tensorboard': False,
    }
    return resolve(changed(config, values | METHODS[method] | dict(changes)))


def prepare_bench(
    run: RunConfig, files: Files, size: Size, tasks: Mapping[str, Path], drawn: Path
) -> Bench:
    """Questions, held-out text and samples of the start, which `drawn` keeps."""
    texts = held_out(run, files.held_out)
    texts |= samples(run, texts, size.samples, drawn)
    return Bench(questions(tasks, size.questions), texts, size.rows or Bench.rows)


def grid(args: argparse.Namespace) -> Iterator[tuple[str, float, int]]:
    """Runs in the order in which they are done: all methods before the next rate."""
    for seed, lr in itertools.product(range(args.seeds), args.lrs):
        for method in (m for m in args.methods if m != 'start'):
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
    version = args.commit or commit()
    size = Size(args.steps, args.prompts, args.rows, args.questions, args.samples)
    files = split_files(args.work)
    tasks = {name: DATA / f'bench/mosaic_{name}.jsonl' for name in TASKS}
    tasks['lambada'] = files.held_out['text']  # of the kind that a stream trains on
    changes = {'model.path': str(args.model), 'model.compute_dtype': args.dtype}
    first = run_config('mpo+sft+text', args.lrs[0], 0, size, files, changes)
    bench = prepare_bench(first, files, size, tasks, args.work / 'samples.json')
    if not (args.out / 'start.json').exists() and 'start' in args.methods:
        spec, params = load_model(first.model.path)
        start = measure(bench, params, spec, first)
        write(args.out / 'start.json', {'commit': version} | start)
    for method, lr, seed in grid(args):
        path = args.out / f'{method}_{lr:g}_{seed}.json'
        if path.exists():
            continue
        began = time.perf_counter()
        run = run_config(method, lr, seed, size, files, changes)
        found = train_and_measure(run, bench)
        seconds = time.perf_counter() - began
        about = {'method': method, 'lr': lr, 'seed': seed, 'commit': version}
        write(path, about | {'wall_seconds': seconds} | found)
        print(f'{path} {seconds:.0f} s', flush=True)
        if jax.default_backend() == 'cpu':
            jax.clear_caches()  # programs of one run after another would fill the memory


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n', 1)[0])
    add = parser.add_argument
    add('--model', type=Path, default=Path('models/SmolLM2-135M-Instruct.gguf'))
    add('--out', type=Path, default=results_of(__file__) / 'retention')
    add('--work', type=Path, default=Path('runs/mpo_retention'), help='splits, samples')
    everything = ['start', *METHODS]
    add('--methods', nargs='+', default=everything, choices=everything)
    add('--lrs', nargs='+', type=float, default=[3e-5, 1e-5, 1e-4])
    add('--seeds', type=int, default=1, help='how many')
    add('--steps', type=int, default=Size.steps, help='updates')
    add('--prompts', type=int, default=Size.prompts, help='pairs of an update')
    add('--rows', type=int, default=Size.rows, help='computed together; 0 chooses')
    add('--questions', type=int, default=Size.questions, help='of each task')
    add('--samples', type=int, default=Size.samples, help='of the start, on two kinds')
    add('--dtype', default='float32', help='of the products of training')
    add('--commit', default='', help='of this code, where git cannot tell')
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
