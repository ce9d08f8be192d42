"""Grids of settings: what a sweep runs, and the names of its runs."""

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from epa_jax.config import ConfigError, check_key, parse

Settings = dict[str, Any]  # values by dotted key
LONGEST = 150  # characters of a folder's name


def expand(
    grids: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Sequence[Any]]],
) -> list[Settings]:
    """All combinations of a grid, or of each of several grids after one another.

    Args:
      grids: values by dotted key, such as {'loss.beta': [0.05, 0.1], 'seed': [0, 1]}.

    Returns:
      Settings in which the last key varies fastest.

    Raises:
      ConfigError: a key that does not exist, one without values, `workdir`, or two
        combinations that are the same.
    """
    out: list[Settings] = []
    for grid in [grids] if isinstance(grids, Mapping) else grids:
        for key, values in grid.items():
            _check(key, values)
        out += [
            dict(zip(grid, values, strict=True))
            for values in itertools.product(*grid.values())
        ]
    names = [json.dumps(settings, sort_keys=True) for settings in out]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f'grid: {name} is there {names.count(name)} times')
    return out


def _check(key: str, values: Sequence[Any]) -> None:
    check_key(key)
    if key == 'workdir':
        raise ConfigError('grid: workdir is the folder of the sweep; each run has its own')
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ConfigError(f'grid: {key}={values!r}: expected a list of values')
    if not list(values):
        raise ConfigError(f'grid: {key} has no values')


def parse_axis(text: str) -> tuple[str, list[Any]]:
    """An axis as the command line has it: 'loss.beta=0.05,0.1'.

    Raises:
      ConfigError: no such key, or a value of the wrong type.
    """
    key, equals, values = text.partition('=')
    if not equals:
        raise ConfigError(f'--grid={text}: expected KEY=VALUE,VALUE,...')
    check_key(key)
    return key, [parse(key, value) for value in values.split(',')]


def names_of(combinations: Sequence[Settings]) -> list[str]:
    """A folder name for each, of the keys in which they differ, last parts alone if clear.

    Raises:
      ConfigError: names that are too long, or alike once made fit for a folder.
    """
    keys = list(dict.fromkeys(key for settings in combinations for key in settings))
    varied = [key for key in keys if len({_text(s.get(key)) for s in combinations}) > 1]
    short = [key.rpartition('.')[2] for key in varied]
    shown = {
        key: last if short.count(last) == 1 else key
        for key, last in zip(varied, short, strict=True)
    }
    out = []
    for settings in combinations:
        parts = [f'{shown[k]}={_text(settings[k])}' for k in varied if k in settings]
        out.append(re.sub(r'[^\w.,=+-]', '_', ','.join(parts)) or 'run')
    for name in out:
        if len(name) > LONGEST or out.count(name) > 1:
            raise ConfigError(f'grid: {name}: too long, or the name of two runs')
    return out


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
