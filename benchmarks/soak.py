"""A long run of a tiny model, whole and cut into pieces: python -m benchmarks.soak.

Thousands of steps with evaluations and saves, once without a break and once in several
starts of the same command. Writes resident memory by step to --out, a CSV, and prints the
machine, how far memory rose after the first quarter and whether both runs end in the same
bits.
"""

import argparse
import csv
import dataclasses
import json
import logging
import os
import random
import subprocess
import sys
import unittest.mock
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks import machine
from epa_jax.config import changed, defaults, flatten, from_flat, resolve
from epa_jax.formats.export import export_model
from epa_jax.loop import Loop
from epa_jax.models import transformer
from epa_jax.models.spec import plain_llama
from epa_jax.schema import RunConfig
from epa_jax.train import train

WORDS = [f'w{i}' for i in range(28)]
MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class Soaked:
    """What a start left.

    Attributes:
      memory: (step, resident bytes), after every save.
      params: final parameters; None where the start was cut off.
    """

    memory: list[tuple[int, int]]
    params: list[np.ndarray] | None


def write_inputs(folder: Path) -> None:
    """A model and pairs, small enough that a step takes milliseconds."""
    vocabulary = {w: i for i, w in enumerate(['<pad>', '<s>', '</s>', '<unk>', *WORDS])}
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(vocabulary, unk_token='<unk>')
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token='<s>',
        eos_token='</s>',
        pad_token='<pad>',
        unk_token='<unk>',
    )
    spec = plain_llama(
        vocab_size=len(vocabulary),
        d_model=8,
        d_ff=16,
        n_layers=2,
        n_heads=2,
        n_kv_heads=1,
        tie_embeddings=True,
        max_positions=64,
    )
    params = transformer.init_params(spec, jax.random.key(0))
    export_model(folder / 'model', spec, params, tokenizer, dtype='float32')
    rng = random.Random(0)
    with (folder / 'pairs.jsonl').open('w', encoding='utf-8') as file:
        for _ in range(64):
            prompt, chosen, rejected = (' '.join(rng.choices(WORDS, k=4)) for _ in range(3))
            record = {'prompt': prompt, 'chosen': chosen, 'rejected': rejected}
            file.write(json.dumps(record) + '\n')


def soak_config(folder: Path, name: str, steps: int, every: int) -> RunConfig:
    """The run: EPA with resampled negatives, evaluated and saved every `every` steps."""
    values = {
        'workdir': str(folder / name),
        'steps': steps,
        'export': False,
        'model.path': str(folder / 'model'),
        'data.train': str(folder / 'pairs.jsonl'),
        'data.eval_examples': 16,
        'data.max_prompt_tokens': 16,
        'data.max_response_tokens': 16,
        'data.n_weak': 1,
        'batch.prompts': 4,
        'optim.lr': 1e-3,
        'reference.mode': 'in_step',
        'log.tensorboard': False,
        'log.eval_every': every,
        'checkpoint.every': every,
        'checkpoint.keep_last': 2,
        'checkpoint.keep_best': 1,
    }
    return resolve(changed(defaults(), values))


class Cut(Exception):
    """Ends a start early, as a lost machine would."""


def soak(run: RunConfig, until: int | None = None) -> Soaked:
    """Starts a run or goes on with it, perhaps up to the save of step `until` alone."""
    memory = []
    original = Loop._save

    def save(self: Loop, batches: object) -> None:
        original(self, batches)
        memory.append((self.step, resident()))
        if until is not None and self.step >= until and self.step < run.steps:
            raise Cut

    try:
        with unittest.mock.patch.object(Loop, '_save', save):
            result = train(run)
    except Cut:
        return Soaked(memory, None)
    return Soaked(memory, [np.asarray(leaf) for leaf in jax.tree.leaves(result.params)])


def resident() -> int:
    """Resident memory of this process now, bytes; Linux."""
    pages = int(Path('/proc/self/statm').read_text('ascii').split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE')


def rise(memory: list[tuple[int, int]]) -> float:
    """How far memory rose after the first quarter, MiB: medians of second and last."""
    values = np.array([size for _, size in memory], float)
    quarter = len(values) // 4
    first, last = values[quarter : 2 * quarter], values[-quarter:]
    return float(np.median(last) - np.median(first)) / MIB


def in_a_process(run: RunConfig, until: int | None, out: Path) -> Soaked:
    """`soak` in a new process, as every start of a run is."""
    (out / 'run.json').write_text(json.dumps(flatten(run)), 'utf-8')
    command = [sys.executable, '-m', 'benchmarks.soak', '--start', str(out)]
    environment: Mapping[str, str] = os.environ | {'JAX_PLATFORMS': 'cpu'}
    subprocess.run(
        [*command, '--until', str(until or 0)],
        check=True,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    memory = json.loads((out / 'memory.json').read_text('utf-8'))
    found = out / 'params.npz'
    if not found.is_file():
        return Soaked(memory, None)
    with np.load(found) as arrays:
        return Soaked(memory, [arrays[f'arr_{i}'] for i in range(len(arrays))])


def start(folder: Path, until: int | None) -> None:
    """What `in_a_process` starts."""
    run = from_flat(json.loads((folder / 'run.json').read_text('utf-8')))
    done = soak(run, until)
    (folder / 'memory.json').write_text(json.dumps(done.memory), 'utf-8')
    if done.params is not None:
        np.savez(folder / 'params.npz', *done.params)


def compare(folder: Path, steps: int, every: int, pieces: int) -> tuple[Soaked, bool]:
    """Runs whole and cut; the whole run, and whether both end in the same bits."""
    write_inputs(folder)
    ends = [every * round(steps * i / pieces / every) for i in range(1, pieces)]
    results = {}
    for name, stops in (('whole', [None]), ('cut', [*ends, None])):
        run = soak_config(folder, name, steps, every)
        for number, until in enumerate(stops):
            out = folder / f'{name}-{number}'
            out.mkdir()
            results[name] = in_a_process(run, until, out)
    whole, cut = results['whole'], results['cut']
    assert whole.params is not None
    assert cut.params is not None
    pairs = zip(whole.params, cut.params, strict=True)
    return whole, all(np.array_equal(a, b) for a, b in pairs)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--folder', type=Path, default=Path('runs/soak'))
    parser.add_argument('--steps', type=int, default=5000)
    parser.add_argument('--every', type=int, default=100, help='steps between saves')
    parser.add_argument('--pieces', type=int, default=4)
    parser.add_argument('--out', type=Path, default=Path('benchmarks/results/soak.csv'))
    parser.add_argument('--start', type=Path, help=argparse.SUPPRESS)
    parser.add_argument('--until', type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.basicConfig(format='%(message)s')
    if args.start:
        start(args.start, args.until or None)
        return
    if args.folder.exists():
        parser.error(
            f'--folder: {args.folder} is there, and its runs would only go on; '
            'remove it, or name another'
        )
    args.folder.mkdir(parents=True)
    print(machine.machine())
    whole, same = compare(args.folder, args.steps, args.every, args.pieces)
    with args.out.open('w', encoding='utf-8', newline='') as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow(['step', 'resident_mib'])
        writer.writerows([step, f'{size / MIB:.1f}'] for step, size in whole.memory)
    print(f'memory rose by {rise(whole.memory):.1f} MiB after the first quarter')
    print(f'whole and in {args.pieces} pieces: {"the same bits" if same else "DIFFERENT"}')


if __name__ == '__main__':
    main()
