"""Tasks of lm-evaluation-harness: python -m epa_jax.lm_eval MODEL --tasks NAME ..."""

import argparse
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import jax
import numpy as np

from epa_jax.commands import add_model_arguments, evals_file, policy_of, show_errors
from epa_jax.config import ConfigError
from epa_jax.data.sources import DataError
from epa_jax.evals.generation import ROWS as SAMPLE_ROWS
from epa_jax.evals.scoring import ROWS
from epa_jax.evals.stopping import stop_ids
from epa_jax.storage import argument as local_path


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog='python -m epa_jax.lm_eval',
        description="Tasks of EleutherAI's lm-evaluation-harness, its own or local ones. "
        "Needs the extra lm_eval: pip install -c constraints.txt -e '.[lm_eval]'.",
    )
    add_model_arguments(parser)
    add = parser.add_argument
    add('--tasks', required=True, nargs='+', help='names of tasks or groups; * matches')
    add('--include_path', action='append', default=[], help='folder of task YAML files')
    add('--num_fewshot', type=int, help='examples before a question; else as the task')
    add('--limit', type=float, help="of each task's documents; below 1 a share of them")
    add('--apply_chat_template', action='store_true', help='to every context')
    add('--system_instruction', help='before every context')
    add('--gen_kwargs', help="such as 'temperature=0.7,max_gen_toks=64', over the task's")
    add('--bootstrap_iters', type=int, default=1000, help='of errors without a formula')
    add('--rows', type=int, default=ROWS, help='rows a device scores together')
    add(
        '--sample_rows',
        type=int,
        default=SAMPLE_ROWS,
        help='rows it generates together',
    )
    add('--seed', type=int, default=0, help='of sampled responses')
    add('--out', type=local_path, help='JSON file of the results; of a run, in its evals/')
    add('--details', type=local_path, help='JSONL file with a line for each document')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Prints a line for each metric of each task and group."""
    args = arguments(argv)
    # the harness forks workers for its bootstrap, which hangs beside XLA's threads
    os.environ.setdefault('DISABLE_MULTIPROC', '1')
    try:
        from lm_eval.tasks import TaskManager

        from epa_jax.evals.harness import PolicyLM
    except ImportError as error:
        raise ConfigError(
            'this command needs lm-evaluation-harness: '
            f"pip install -c constraints.txt -e '.[lm_eval]' ({error})"
        ) from error
    tasks = _find_tasks(args, TaskManager)
    policy = policy_of(args)
    model = PolicyLM(
        policy,
        stop_ids(policy.tokenizer, args.model, []),
        rows=args.rows,
        sample_rows=args.sample_rows,
        seed=args.seed,
    )
    found = _evaluate(args, tasks, model)
    if jax.process_index() == 0:
        print('\n'.join(table(found)))
        for kind, count in model.cut.items():
            if count:
                print(f'{count} contexts cut on the left ({kind})')
        _write(args, found, dict(model.cut))


def _find_tasks(args: argparse.Namespace, manager: Any) -> tuple[Any, list[str]]:
    """An index of tasks and the names asked for, looked up in the user's folders first.

    Reading the harness's own thousands of tasks takes many seconds.

    Raises:
      ConfigError: a folder that is none, or a name that is not known.
    """
    for folder in args.include_path:
        if not Path(folder).is_dir():
            raise ConfigError(f'--include_path: {folder} is no folder')
    wanted = [name for names in args.tasks for name in names.split(',') if name]
    for defaults in (False, True):
        index = manager(include_path=args.include_path, include_defaults=defaults)
        missing = [name for name in wanted if not index.match_tasks([name])]
        if wanted and not missing:
            return index, sorted(index.match_tasks(wanted))
    raise ConfigError(
        f'--tasks {", ".join(missing)}: neither in --include_path nor a task of the harness'
    )


def _evaluate(
    args: argparse.Namespace, tasks: tuple[Any, list[str]], model: Any
) -> dict[str, Any]:
    import lm_eval

    index, names = tasks
    try:
        return lm_eval.simple_evaluate(
            model=model,
            tasks=names,
            task_manager=index,
            num_fewshot=args.num_fewshot,
            limit=args.limit,
            apply_chat_template=args.apply_chat_template,
            fewshot_as_multiturn=args.apply_chat_template,
            system_instruction=args.system_instruction,
            gen_kwargs=args.gen_kwargs,
            bootstrap_iters=args.bootstrap_iters,
            log_samples=args.details is not None,
        )
    except (OSError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f'--tasks {", ".join(names)}: the data cannot be read: {error}'
        ) from error


def table(found: Mapping[str, Any]) -> list[str]:
    """A line for each metric: the harness's value, standard error, and its direction.

    Not by the harness's own `make_table`, whose table writer forks processes.

    Args:
      found: what `lm_eval.simple_evaluate` returns.
    """
    lines = []
    for task, metrics in found['results'].items():
        shots, better = found['n-shot'].get(task), found['higher_is_better'].get(task, {})
        count = found['n-samples'].get(task, {}).get('effective')
        for key, value in metrics.items():
            name, _, kept = key.partition(',')  # such as 'acc,none': metric and filter
            if not kept or name.endswith('_stderr'):
                continue
            error = metrics.get(f'{name}_stderr,{kept}')
            label = name if kept == 'none' else f'{name} ({kept})'
            arrow = {True: '↑', False: '↓'}.get(better.get(name), ' ')
            shown = _number(value) if isinstance(value, float) else str(value)
            known = isinstance(error, float) and math.isfinite(error)
            lines.append(
                f'{task:28} {label:24} {arrow} {shown:>10}'
                + (f' ± {_number(error)}' if known else ' ' * 9)
                + (f'  {count} documents' if count is not None else '')
                + (f'  {shots}-shot' if shots is not None else '')
            )
    return lines


def _number(value: float) -> str:
    return f'{value:.4f}' if abs(value) < 1e4 else f'{value:.5g}'


def _write(
    args: argparse.Namespace, found: Mapping[str, Any], cut: Mapping[str, int]
) -> None:
    path = evals_file(args, 'lm_eval')
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        names = ('num_fewshot', 'limit', 'system_instruction', 'gen_kwargs', 'seed')
        out = {
            'model': str(args.model),
            'step': args.step,
            'dtype': args.dtype,
            'chat_template': args.apply_chat_template,
            **{name: getattr(args, name) for name in names},
            'lm_eval_version': found['lm_eval_version'],
            'versions': found['versions'],
            'n-shot': found['n-shot'],
            'n-samples': found['n-samples'],
            'cut_contexts': cut,
            'results': found['results'],
            'groups': found.get('groups', {}),
        }
        path.write_text(json.dumps(_plain(out), indent=2) + '\n', 'utf-8')
    if args.details:
        args.details.parent.mkdir(parents=True, exist_ok=True)
        with args.details.open('w', encoding='utf-8') as file:
            for task, rows in sorted(found['samples'].items()):
                for row in rows:
                    file.write(json.dumps(_plain({'task': task, **row})) + '\n')


def _plain(value: Any) -> Any:
    """What JSON can hold; numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, bool | int | None) else str(value)


def run_main() -> None:
    """Shows bad input as one message."""
    show_errors(main)


if __name__ == '__main__':
    run_main()
