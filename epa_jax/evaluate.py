"""Answers questions by log-likelihood: python -m epa_jax.evaluate MODEL TASK.jsonl ..."""

import argparse
import json
import time
from typing import Any

import jax

from epa_jax.commands import add_model_arguments, evals_file, policy_of, show_errors
from epa_jax.config import ConfigError
from epa_jax.evals.answers import Answers, answer
from epa_jax.evals.scoring import ROWS
from epa_jax.evals.tasks import Task, read_task
from epa_jax.storage import argument as local_path


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog='python -m epa_jax.evaluate',
        description='Multiple choice and completion by log-likelihood.',
    )
    add_model_arguments(parser)
    add = parser.add_argument
    add('tasks', nargs='+', help='JSONL files; see epa_jax.evals.tasks for their keys')
    add('--limit', type=int, default=0, help='questions of each task, at random; 0: all')
    add('--seed', type=int, default=0, help='of that choice')
    add('--delimiter', help='between query and choice; by the query unless given')
    add('--rows', type=int, default=ROWS, help='rows a device computes together')
    add(
        '--out', type=local_path, help='JSON file of the summaries; of a run, in its evals/'
    )
    add('--details', type=local_path, help='JSONL file with a line for each question')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Prints a line for each task."""
    args = arguments(argv)
    tasks = [
        read_task(path, delimiter=args.delimiter, limit=args.limit, seed=args.seed)
        for path in args.tasks
    ]
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise ConfigError(f'tasks {", ".join(names)}: two have one name; rename a file')
    found = []
    for result, seconds in _answers(args, tasks):
        found.append(result)
        if jax.process_index() == 0:
            print(describe(result), f'{seconds:6.1f} s', flush=True)
    if jax.process_index() == 0:
        _write(args, found)


def _answers(args: argparse.Namespace, tasks: list[Task]) -> Any:
    """Answers to each task, and how long they took."""
    policy = policy_of(args)
    for task in tasks:
        began = time.perf_counter()
        result = answer(
            task,
            policy.params,
            policy.spec,
            policy.compute,
            policy.tokenizer,
            mesh=policy.mesh,
            rows=args.rows,
        )
        yield result, time.perf_counter() - began


def describe(answers: Answers) -> str:
    """A task in one line, with standard errors."""
    summary = answers.summary()
    parts = [f'{answers.task.name:28}', f'{summary["questions"]:6} questions']
    for name, label in (
        ('accuracy', 'accuracy'),
        ('accuracy_per_character', 'per character'),
        ('gold_probability', 'p(gold)'),
    ):
        if name in summary:
            error = summary[f'{name}_error']
            shown = '' if error is None else f' ± {error:.3f}'
            parts.append(f'{label} {summary[name]:.3f}{shown}')
    if summary.get('perplexity') is not None:
        parts.append(f'perplexity {summary["perplexity"]:.4g}')
    if summary['cut_options']:
        parts.append(f'{summary["cut_options"]} contexts cut on the left')
    return '  '.join(parts)


def _write(args: argparse.Namespace, found: list[Answers]) -> None:
    path = evals_file(args, 'tasks')
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        out = {
            'model': str(args.model),
            'limit': args.limit,
            'seed': args.seed,
            'step': args.step,
            'dtype': args.dtype,
            'tasks': {result.task.name: result.summary() for result in found},
        }
        path.write_text(json.dumps(out, indent=2) + '\n', 'utf-8')
    if args.details:
        args.details.parent.mkdir(parents=True, exist_ok=True)
        with args.details.open('w', encoding='utf-8') as file:
            for result in found:
                for record in result.records():
                    file.write(json.dumps({'task': result.task.name, **record}) + '\n')


def run_main() -> None:
    """Shows bad input as one message."""
    show_errors(main)


if __name__ == '__main__':
    run_main()
