"""A training step here, in TRL and in Tunix: python -m benchmarks.step --help.

Contestants run in processes of their own, one after another, round by round. Their lines
are kept in benchmarks/results/step/, and benchmarks/results/step.csv is made anew from
all of them: a contestant may be measured again without the others (--fresh).
"""

import argparse
import dataclasses
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import flops, machine, ours, records, task, workload
from epa_jax.formats.load import load_spec

RESULTS = machine.REPO / 'benchmarks' / 'results'
CONTESTANTS: Mapping[str, Sequence[str]] = {
    'ours': (),
    'trl': (),
    'trl+precompute': ('--precompute',),
    'trl+checkpointing': ('--checkpointing',),
    'tunix': (),
}
SHOWN = (
    'model', 'ratio', 'contestant', 'variant', 'seconds', 'seconds_one_epoch',
    'examples_per_second', 'peak_gb', 'share_of_matmul', 'versus_trl_dpo',
)  # fmt: skip


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.step',
        description='Seconds, memory and share of the matrix rate of a training step.',
    )
    workload.add_arguments(parser)
    add = parser.add_argument
    add('--name', required=True, help='of the model, in the table')
    add('--contestants', nargs='*', default=['ours'], choices=sorted(CONTESTANTS))
    add('--rounds', type=int, default=1, help='processes of each contestant')
    add('--fresh', action='store_true', help='delete earlier rounds of these contestants')
    add('--trl-python', default='python', help='interpreter with torch and trl')
    add('--tunix-python', default='python', help='interpreter with google-tunix')
    add('--set', nargs='*', default=[], metavar='KEY=VALUE', help='keys of our runs')
    add('--results', type=Path, default=RESULTS, help='folder of the results')
    args = parser.parse_args(argv)
    if args.ratio != '1:1' and set(args.contestants) != {'ours'}:
        parser.error('--ratio: TRL and Tunix know pairs alone; 1:1 for them')
    return args


def command(contestant: str, args: argparse.Namespace, steps: Path) -> list[str]:
    """The process of a contestant, without its --out."""
    common = ['--model', args.model, '--steps', str(args.steps), '--dtype', args.dtype]
    limits = [
        '--max-prompt',
        str(args.max_prompt),
        '--max-response',
        str(args.max_response),
    ]
    kind = contestant.partition('+')[0]
    if kind == 'ours':
        data = ['--data', args.data, '--ratio', args.ratio, '--prompts', str(args.prompts)]
        values = ['--set', *args.set] if args.set else []
        return [sys.executable, '-m', 'benchmarks.ours', *common, *limits, *data, *values]
    common += ['--steps-file', str(steps), *CONTESTANTS[contestant]]
    if kind == 'trl':
        return [args.trl_python, '-m', 'benchmarks.trl_dpo', *common]
    return [args.tunix_python, '-m', 'benchmarks.tunix_dpo', *common, *limits]


def stem(args: argparse.Namespace) -> str:
    """How the files of a setting begin."""
    parts = [
        args.name,
        args.data,
        args.ratio.replace(':', ''),
        str(args.prompts),
        args.dtype,
    ]
    return '-'.join(Path(part).stem for part in parts)


def files(
    folder: Path, contestant: str, args: argparse.Namespace
) -> tuple[str, list[Path]]:
    """How the files of a contestant begin, and those that are there."""
    name = f'{stem(args)}-{contestant}'
    if args.set and contestant == 'ours':
        keys = re.sub(r'[^\w.=+-]', '_', ours.variant(ours.keys(args.set)))
        name += f'-{keys}'
    return name, list(folder.glob(f'{name}-[0-9]*.jsonl'))


def measure(args: argparse.Namespace) -> None:
    """Runs every contestant once a round."""
    folder = args.results / 'step'
    folder.mkdir(parents=True, exist_ok=True)
    if args.fresh:
        for contestant in args.contestants:
            for path in files(folder, contestant, args)[1]:
                path.unlink()
    with tempfile.TemporaryDirectory() as scratch:
        steps = Path(scratch) / 'steps.jsonl'
        work = write_steps(args, steps)
        for _ in range(args.rounds):
            for contestant in args.contestants:
                _one(contestant, args, steps, work, folder)


def _one(
    contestant: str,
    args: argparse.Namespace,
    steps: Path,
    work: Mapping[str, float],
    folder: Path,
) -> None:
    """One process, whose lines are kept with what was asked of it."""
    name, found = files(folder, contestant, args)
    path = folder / f'{name}-{len(found) + 1}.jsonl'
    raw = steps.with_name('lines.jsonl')
    print(f'{path.name} ...', flush=True)
    subprocess.run(
        [*command(contestant, args, steps), '--out', str(raw)],
        check=True,
        cwd=machine.REPO,
        env=os.environ | {'HF_HUB_OFFLINE': '1', 'TOKENIZERS_PARALLELISM': 'false'},
    )
    lines = records.read(raw)
    setting = dataclasses.asdict(workload.setting_of(args)) | {'model': args.name}
    lines[0] |= setting | {'contestant': contestant, **work}
    recorder = records.Recorder(path)
    for line in lines:
        recorder.write(**line)


def write_steps(args: argparse.Namespace, path: Path) -> dict[str, float]:
    """Writes the tokens of the steps; counts what a mean step after the first needs."""
    setting = workload.setting_of(args)
    data = workload.pipeline(workload.run_config(setting, path.parent))
    steps = [workload.as_lists(g) for g in workload.groups_of_steps(data, args.steps)]
    task.write_steps(path, steps)
    spec = load_spec(args.model)
    steps = steps[1:] or steps  # the first compiles and is not timed
    mean = statistics.fmean
    return {
        'shared_tokens': mean(flops.shared(s).tokens for s in steps),
        'repeated_tokens': mean(flops.repeated(s).tokens for s in steps),
        'flops_shared': mean(flops.of_groups(spec, s) for s in steps),
        'flops_repeated': mean(flops.of_pairs(spec, s, False) for s in steps),
        'flops_repeated_reference': mean(flops.of_pairs(spec, s, True) for s in steps),
    }


def table(processes: Iterable[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """A row for each setting and contestant, from the lines of their processes."""
    grouped: dict[tuple, list[Sequence[Mapping[str, Any]]]] = {}
    for lines in processes:
        head = lines[0]
        names = ('model', 'data', 'prompts', 'dtype', 'ratio', 'contestant', 'variant')
        grouped.setdefault(tuple(head[name] for name in names), []).append(lines)
    rates: dict[str, list[float]] = {}
    for runs in grouped.values():
        for lines in runs:
            rates.setdefault(lines[0]['dtype'], []).append(lines[0]['matmul_flops'])
    best = {dtype: max(found) for dtype, found in rates.items()}
    rows = [_row(runs, best[key[3]]) for key, runs in sorted(grouped.items())]
    return [row | {'versus_trl_dpo': _versus(row, rows)} for row in rows]


def _row(runs: Sequence[Sequence[Mapping[str, Any]]], rate: float) -> dict[str, Any]:
    head, end = runs[-1][0], runs[-1][-1]
    lines = [line for run in runs for line in run]
    seconds = records.mean_step(runs)
    reference = statistics.median(run[-1]['reference_seconds'] for run in runs)
    epoch = seconds.median + reference
    return {
        **{k: head[k] for k in ('model', 'data', 'ratio', 'prompts', 'dtype')},
        'contestant': head['contestant'],
        'variant': head['variant'],
        'rounds': len(runs),
        'steps': seconds.count,
        'seconds': seconds.median,
        'seconds_low': seconds.low,
        'seconds_high': seconds.high,
        'compile_seconds': statistics.median(records.steps(lines, compiled=True)),
        'reference_seconds': reference,
        'seconds_one_epoch': epoch,
        'examples_per_second': head['prompts'] / epoch,
        'examples_per_second_cached': head['prompts'] / seconds.median,
        'tokens_per_second': head['shared_tokens'] / epoch,
        'tokens': head['shared_tokens'],
        'computed_tokens': end['computed_tokens'],
        'peak_gb': max(run[-1]['peak_bytes'] for run in runs) / 1e9,
        'needed_gflop': _needed(head, end) / 1e9,
        'matmul_gflops': rate / 1e9,
        'share_of_matmul': _needed(head, end) / seconds.median / rate,
        'commit': head['machine']['commit'],
    }


def _needed(head: Mapping[str, Any], end: Mapping[str, Any]) -> float:
    """Operations of a contestant's own step, without its padding."""
    if head['contestant'] == 'ours':
        extra = head['flops_shared'] / flops.TRAIN_PASSES
        return head['flops_shared'] + (extra if end['reference_in_step'] else 0.0)
    with_reference = '_reference' if end['reference_in_step'] else ''
    return head[f'flops_repeated{with_reference}']


def _versus(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> float | str:
    """Examples a second over those of TRL's DPO with the same model, data and prompts."""
    same = ('model', 'data', 'prompts', 'dtype')
    for other in rows:
        if other['contestant'] == 'trl' and all(other[k] == row[k] for k in same):
            return row['examples_per_second'] / other['examples_per_second']
    return ''


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, then writes and shows the table."""
    args = arguments(argv)
    print(machine.machine())
    measure(args)
    lines = [records.read(p) for p in sorted((args.results / 'step').glob('*.jsonl'))]
    rows = table(lines)
    records.write_csv(args.results / 'step.csv', rows)
    print(records.show([{k: row[k] for k in SHOWN} for row in rows]))


if __name__ == '__main__':
    main()
