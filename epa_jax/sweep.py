"""Runs a grid of configurations: python -m epa_jax.sweep --config=experiments/X.py."""

import logging
import runpy
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags
from jax.experimental import multihost_utils
from ml_collections import config_flags

from epa_jax.comparison import table
from epa_jax.comparison.runs import grouped, read_run
from epa_jax.config import ConfigError, changed, resolve
from epa_jax.grid import expand, names_of, parse_axis
from epa_jax.prepare import loss_of
from epa_jax.run_folder import open_run_folder
from epa_jax.schema import RunConfig
from epa_jax.storage import is_remote
from epa_jax.train import CONFIG, USER_ERRORS, run_flags, train

log = logging.getLogger('epa_jax.sweep')  # not __main__

_GRID = flags.DEFINE_multi_string(
    'grid', [], 'KEY=VALUE,VALUE,... in place of get_grid() of the config file; repeatable.'
)
_PART = flags.DEFINE_string('part', '1/1', 'I/N: of N machines, this is the I-th.')
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Name the runs and check them; train none.')


def planned(config: Any, grids: Any) -> list[RunConfig]:
    """The runs of a grid, each in a folder of its own within the config's workdir.

    Args:
      config: an ml_collections.ConfigDict.
      grids: as `grid.expand` takes.

    Raises:
      ConfigError: a grid that is malformed, or a run that cannot work; names it.
    """
    if is_remote(config.workdir):
        raise ConfigError(
            f'workdir={config.workdir!r}: a sweep writes to local folders; single runs to '
            'buckets'
        )
    combinations = expand(grids)
    out = []
    for name, settings in zip(names_of(combinations), combinations, strict=True):
        own = {'workdir': str(Path(config.workdir) / name)}
        try:
            run = resolve(changed(config, settings | own))
            loss_of(run)
        except ConfigError as error:
            raise ConfigError(f'run {name}: {error}') from error
        out.append(run)
    return out


def part_of(runs: list[RunConfig], text: str) -> list[RunConfig]:
    """Every N-th run from the I-th on, for 'I/N'.

    Raises:
      ConfigError: not of that form.
    """
    i, slash, n = text.partition('/')
    if not (slash and i.isdigit() and n.isdigit() and 1 <= int(i) <= int(n)):
        raise ConfigError(f'--part={text}: expected I/N with I from 1 to N, such as 2/4')
    return runs[int(i) - 1 :: int(n)]


def sweep(runs: list[RunConfig]) -> list[str]:
    """Trains what is not done yet; a run that fails does not end the sweep.

    Returns:
      What went wrong, a line a run.
    """
    failed = []
    for number, run in enumerate(runs, start=1):
        if is_done(run):
            log.info('run %d of %d: %s is done', number, len(runs), run.workdir)
            continue
        log.info('run %d of %d: %s', number, len(runs), run.workdir)
        try:
            train(run)
        except USER_ERRORS as error:
            failed.append(f'{run.workdir}: {type(error).__name__}: {error}')
            log.error('%s', failed[-1])
        jax.clear_caches()  # the programs of other runs
    return failed


def is_done(run: RunConfig) -> bool:
    """Whether this very run has ended; the first process decides for all.

    Raises:
      ConfigError: its folder holds a run of another configuration.
    """
    if not Path(run.workdir).is_dir():
        ended = False
    else:
        ended = (open_run_folder(run).path / 'summary.json').is_file()
    return bool(multihost_utils.broadcast_one_to_all(np.array(ended)))


def _grids() -> Any:
    """From the command line, else from get_grid() of the configuration's file."""
    if _GRID.value:
        axes = [parse_axis(text) for text in _GRID.value]
        if len(dict(axes)) < len(axes):
            raise ConfigError('--grid: a key is there twice; join its values with commas')
        return dict(axes)
    path = config_flags.get_config_filename(flags.FLAGS['config']).partition(':')[0]
    grid = runpy.run_path(path).get('get_grid')
    if grid is None:
        raise ConfigError(f'{path}: has no get_grid(); define it, or give --grid')
    return grid()


def show(runs: list[RunConfig]) -> None:
    """Prints runs that have ended, side by side; every process calls it, one prints."""
    ended = [Path(run.workdir) for run in runs if is_done(run)]
    if ended and jax.process_index() == 0:
        lines = table.text(grouped([read_run(folder) for folder in ended]))
        print('\n'.join(['', *lines]))


def main(argv: list[str]) -> None:
    """Entry point."""
    if len(argv) > 1:
        raise app.UsageError(f'unexpected arguments: {" ".join(argv[1:])}')
    runs = part_of(planned(CONFIG.value, _grids()), _PART.value)
    if _DRY_RUN.value:
        for run in runs:
            print(run.workdir, '(done)' if is_done(run) else '')
        return
    failed = sweep(runs)
    show(runs)
    if failed:
        sys.exit('\n'.join([f'{len(failed)} of {len(runs)} runs failed:', *failed]))


def run_main() -> None:
    """Shows bad input as one message."""
    run_flags(main)


if __name__ == '__main__':
    run_main()
