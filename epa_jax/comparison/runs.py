"""What runs leave behind: configuration, metrics, summary, evaluations."""

import csv
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

from epa_jax.config import ConfigError
from epa_jax.evals.bootstrap import Interval
from epa_jax.strict_json import JsonError, parse

# keys that do not say what was done
SILENT = (
    'seed',
    'workdir',
    'export',
    'max_bad_steps',
    'max_step_minutes',
    'step0_guard',
)
SILENT_GROUPS = ('log.', 'checkpoint.', 'mesh.')
SHOWN = ('rewards/accuracies', 'rewards/margins', 'sft/nll', 'pretrain/nll')


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder, read.

    Attributes:
      folder: where it is.
      config: configuration by dotted key.
      summary: outcome; None while the run has not finished.
      metrics: lines of metrics.jsonl.
      held_out: held-out prompts of its evaluations.
      evals: contents of evals/*.json by file name without ending.
    """

    folder: Path
    config: Mapping[str, Any]
    summary: Mapping[str, Any] | None
    metrics: Sequence[Mapping[str, Any]]
    held_out: int
    evals: Mapping[str, Mapping[str, Any]]

    def curve(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of a metric."""
        lines = [line for line in self.metrics if line.get(name) is not None]
        return [line['step'] for line in lines], [float(line[name]) for line in lines]


def read_run(folder: Path) -> Run:
    """Reads a run folder; a run may be unfinished.

    Raises:
      ConfigError: no run there, or a file of it that cannot be read.
    """
    config = _json(folder / 'config.json', needed=True)
    if 'loss.name' not in config:
        raise ConfigError(f'{folder}: config.json is not that of a run')
    held_out = (_json(folder / 'data_report.json') or {}).get('held_out')
    examples = held_out.get('examples') if isinstance(held_out, dict) else 0
    return Run(
        folder=folder,
        config=config,
        summary=_json(folder / 'summary.json'),
        metrics=_lines(folder / 'metrics.jsonl'),
        held_out=examples if isinstance(examples, int) else 0,
        evals={
            path.stem: _json(path, needed=True)
            for path in sorted((folder / 'evals').glob('*.json'))
        },
    )


def read_rewards(folder: Path) -> np.ndarray | None:
    """Ratings and r_theta that `epa_jax.intrinsic` left, less their means over a prompt.

    Returns:
      Float [2, responses], or None where there are none.

    Raises:
      ConfigError: a file that cannot be read.
    """
    path = folder / 'evals' / 'intrinsic_points.csv'
    if not path.is_file():
        return None
    try:
        with path.open(encoding='utf-8', newline='') as file:
            rows = list(csv.DictReader(file))
        prompts = np.array([int(row['prompt']) for row in rows])
        values = [[float(row[name]) for row in rows] for name in ('rating', 'r_theta')]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f'{path}: cannot be read: {error}') from error
    count = np.maximum(np.bincount(prompts), 1)
    means = [(np.bincount(prompts, value) / count)[prompts] for value in values]
    return np.array(values) - np.array(means)


def _json(path: Path, needed: bool = False) -> Any:
    if not path.is_file() and not needed:
        return None
    try:
        found = parse(path.read_text('utf-8'))
    except (OSError, ValueError) as error:
        raise ConfigError(f'{path}: cannot be read: {error}') from error
    if not isinstance(found, dict):
        raise ConfigError(f'{path}: cannot be read: expected an object')
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    out = []
    text = path.read_text('utf-8', errors='surrogateescape')
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            found = parse(line)
        except JsonError as error:
            raise ConfigError(f'{path}:{number}: {error}') from error
        if not isinstance(found, dict) or not isinstance(found.get('step'), int):
            raise ConfigError(f'{path}:{number}: expected an object with a step')
        out.append(found)
    return out


def measured(run: Run) -> dict[str, Interval]:
    """What was measured at the end of a run; intervals are NaN where not known.

    Accuracies of held-out pairs have a normal interval over prompts, tasks one of their
    standard error, and the implicit reward the bootstrap's.

    Raises:
      ConfigError: files of the run that this version did not write.
    """
    try:
        return _measured(run)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ConfigError(
            f'{run.folder}: summary.json or evals/ are not as they were written '
            f'({type(error).__name__}: {error})'
        ) from error


def _measured(run: Run) -> dict[str, Interval]:
    out: dict[str, Interval] = {}
    last = (run.summary or {}).get('eval_last') or {}
    for name in SHOWN:
        if f'eval/{name}' in last:
            value = float(last[f'eval/{name}'])
            half = math.nan
            if name == 'rewards/accuracies' and run.held_out:
                half = 1.96 * math.sqrt(max(value * (1 - value), 0) / run.held_out)
            out[name] = Interval(value, value - half, value + half)
    for task, summary in (run.evals.get('tasks') or {}).get('tasks', {}).items():
        out[f'{task}: accuracy'] = _normal(summary['accuracy'], summary['accuracy_error'])
        if summary.get('perplexity') is not None:
            out[f'{task}: perplexity'] = Interval(summary['perplexity'], math.nan, math.nan)
    out |= _of_harness((run.evals.get('lm_eval') or {}).get('results', {}))
    for name, value in (run.evals.get('intrinsic') or {}).get('metrics', {}).items():
        out[f'r_theta: {name}'] = Interval(*(math.nan if x is None else x for x in value))
    out |= _of_pairs(run.evals.get('reward_bench') or {})
    if run.summary:
        seconds = float(run.summary['seconds'])
        out['seconds'] = Interval(seconds, math.nan, math.nan)
    return out


def _normal(value: float, error: float | None) -> Interval:
    """Interval of a standard error; without one it is not known."""
    half = math.nan if error is None else 1.96 * error
    return Interval(value, value - half, value + half)


def _of_pairs(found: Mapping[str, Any]) -> dict[str, Interval]:
    """Accuracies of sections and their mean, with intervals of their standard errors."""
    parts = {f'pairs: {k}': v for k, v in found.get('sections', {}).items()}
    if found.get('score'):
        parts['pairs: mean of sections'] = found['score']
    return {name: _normal(part['value'], part['error']) for name, part in parts.items()}


def _of_harness(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Interval]:
    """Metrics of lm-evaluation-harness, with intervals of their standard errors."""
    out = {}
    for task, found in results.items():
        for key, value in found.items():
            name, _, kept = key.partition(',')  # such as 'acc,none': metric and filter
            if not kept or name.endswith('_stderr') or not isinstance(value, int | float):
                continue
            error = found.get(f'{name}_stderr,{kept}')
            known = isinstance(error, int | float)
            label = name if kept == 'none' else f'{name} ({kept})'
            out[f'{task}: {label}'] = _normal(value, error if known else None)
    return out


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone.

    Attributes:
      label: what tells the group from the others.
      runs: one or more.
    """

    label: str
    runs: tuple[Run, ...]

    def measured(self) -> dict[str, Interval]:
        """Of one run as it is; of several, means with 95 % t-intervals over seeds."""
        each = [measured(run) for run in self.runs]
        if len(each) == 1:
            return each[0]
        names = [name for name in each[0] if all(name in other for other in each)]
        return {name: _over_seeds([other[name].value for other in each]) for name in names}


def _over_seeds(values: Sequence[float]) -> Interval:
    mean = sum(values) / len(values)
    error = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    half = float(scipy.stats.t.ppf(0.975, len(values) - 1)) * error / len(values) ** 0.5
    return Interval(mean, mean - half, mean + half)


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Runs of equal configuration but for the seed, in the order of their first.

    Raises:
      ConfigError: no runs, or one named twice.
    """
    folders = [run.folder.resolve() for run in runs]
    twice = [str(f) for f in dict.fromkeys(folders) if folders.count(f) > 1]
    if twice or not runs:
        raise ConfigError(f'named twice: {", ".join(twice)}' if twice else 'no runs')
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(json.dumps(_telling(run), sort_keys=True), []).append(run)
    members = [tuple(group) for group in found.values()]
    return [Group(_label(group, members), group) for group in members]


def _telling(run: Run) -> dict[str, Any]:
    return {
        key: value
        for key, value in run.config.items()
        if key not in SILENT and not key.startswith(SILENT_GROUPS)
    }


def _label(group: tuple[Run, ...], groups: Sequence[tuple[Run, ...]]) -> str:
    """The keys in which the groups differ, as they are here."""
    settings = [_telling(members[0]) for members in groups]
    mine = _telling(group[0])
    differing = [
        key for key in mine if any(other.get(key) != mine[key] for other in settings)
    ]
    differing.sort(key=lambda key: key != 'loss.name')
    parts = [
        str(mine[key]) if key == 'loss.name' else f'{key}={mine[key]}' for key in differing
    ]
    return ' '.join(parts) or group[0].folder.name
