"""The folder of a run: what was asked for, where it ran, what came out."""

import contextlib
import datetime
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from epa_jax import storage
from epa_jax.config import ConfigError, flatten
from epa_jax.mirror import Mirror
from epa_jax.schema import RunConfig
from epa_jax.strict_json import JsonError, parse, shown

PACKAGES = (
    'jax',
    'jaxlib',
    'flax',
    'optax',
    'orbax-checkpoint',
    'grain',
    'ml-collections',
    'numpy',
    'safetensors',
    'transformers',
    'tokenizers',
    'datasets',
)
# Keys that may change when a run resumes: they move, report or save the same training.
FREE = (
    'workdir',
    'export',
    'max_bad_steps',
    'max_step_minutes',
    'step0_guard',
    'batch.rows',
    'batch.row_lengths',
    'model.remat',
    'model.logprob_chunk',
    'model.vocab_block',
)
# what a start reads of earlier ones
READ_AGAIN = (
    'config.json',
    'environment.json',
    'metrics.jsonl',
    'summary.json',
    'wandb_id.txt',
)
FREE_GROUPS = ('mesh.', 'checkpoint.', 'log.', 'reference.cache_')


class RunFolder:
    """Paths and files of one run.

    Attributes:
      home: the folder, local or in a bucket.
      path: where its files are written: the same, or a local folder that is mirrored.
      checkpoints: for `checkpoints.Checkpoints`.
      export: for the Hugging Face folder of the trained policy.
      config: flat configuration, as in config.json.
    """

    def __init__(self, workdir: str, config: Mapping[str, Any]):
        """Names the folder; of one in a bucket it reads what earlier starts wrote.

        Raises:
          StorageError: a bucket that cannot be read.
        """
        self.home = storage.path(workdir)
        remote = storage.is_remote(workdir)
        logged = f'logs/process_{jax.process_index()}.jsonl'  # to which a start adds
        self._mirror = Mirror(workdir, [*READ_AGAIN, logged]) if remote else None
        self.path = self._mirror.folder if self._mirror else pathlib.Path(workdir)
        self.checkpoints = self.home / 'checkpoints'
        self.export = self.home / 'export'
        self.config = dict(config)

    @contextlib.contextmanager
    def mirrored(self) -> Iterator[None]:
        """Within it, what is written to `path` gets to `home`, at the end at the latest.

        Raises:
          StorageError: it cannot be written.
        """
        with self._mirror.copying() if self._mirror else contextlib.nullcontext():
            yield

    def before_save(self) -> None:
        """Metrics must not be behind a checkpoint: a run that resumes has only those."""
        if self._mirror:
            self._mirror.try_sync()

    def discard(self) -> None:
        """Removes the local folder of one in a bucket that was only looked at."""
        if self._mirror:
            self._mirror.remove()

    def begun(self) -> bool:
        """Whether an earlier start wrote here."""
        return (self.path / 'config.json').is_file()

    def start(self) -> None:
        """Writes config.json and adds this start to environment.json.

        Called when everything is ready but the reference's log-probs, so that a refused run
        leaves no folder behind.
        With several processes only the first one writes.
        """
        if jax.process_index() == 0:
            self.path.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(self.path)
            write_json(self.path / 'config.json', self.config)
            starts = _read_json(self.path / 'environment.json', default=[])
            write_json(self.path / 'environment.json', [*starts, environment()])

    def write_data_report(self, report: Mapping[str, Any]) -> None:
        """Writes data_report.json: what was read, kept, cut and dropped."""
        write_json(self.path / 'data_report.json', report)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json: the outcome of the run."""
        write_json(self.path / 'summary.json', summary)


def open_run_folder(run: RunConfig) -> RunFolder:
    """The folder of a run, new or that of the same run to resume it; writes nothing yet.

    Raises:
      ConfigError: the folder holds a run of another configuration, or it holds a run and
        `checkpoint.resume` is False; names the keys that differ.
    """
    folder = RunFolder(run.workdir, flatten(run))
    try:
        _check_same_run(folder, run.checkpoint.resume)
    except ConfigError:
        folder.discard()
        raise
    return folder


def _remove_leftovers(path: pathlib.Path) -> None:
    """What a killed run was writing: files of `write_json` and writers, and exports."""
    for file in path.glob('*.partial'):
        file.unlink()
    for folder in path.glob('.export.*'):
        shutil.rmtree(folder)


def _check_same_run(folder: RunFolder, resume: bool) -> None:
    path, config = folder.path / 'config.json', folder.config
    if not path.exists():
        return
    if not resume:
        raise ConfigError(
            f'workdir={str(folder.home)!r} already holds a run; choose another folder, or '
            'set checkpoint.resume=True to continue it'
        )
    found = _read_json(path, default={})
    both = {key: (found.get(key), config.get(key)) for key in {**found, **config}}
    changed = [
        f'{key}: {old!r} there, {new!r} here'
        for key, (old, new) in both.items()
        if old != new and key not in FREE and not key.startswith(FREE_GROUPS)
    ]
    if changed:
        raise ConfigError(
            f'{folder.home}/config.json: the folder holds another run; choose another '
            'workdir or restore:\n  ' + '\n  '.join(changed)
        )


def environment() -> dict[str, Any]:
    """What a run depends on besides its configuration; no environment variables."""
    return {
        'started': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
        'command': sys.argv,
        'python': platform.python_version(),
        'platform': platform.platform(),
        'packages': {name: _version(name) for name in PACKAGES},
        'devices': sorted({f'{d.platform}: {d.device_kind}' for d in jax.devices()}),
        'device_count': jax.device_count(),
        'process_count': jax.process_count(),
        'code': code_version(pathlib.Path(__file__)),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def code_version(file: pathlib.Path) -> dict[str, Any] | None:
    """Git commit of the repository that tracks `file`, and whether it has changes.

    None when no repository tracks it, such as for an installed package.
    """

    def git(*args: str) -> str:
        command = ['git', '-C', str(file.parent), *args]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git('ls-files', '--error-unmatch', file.name)
        return {'commit': git('rev-parse', 'HEAD'), 'dirty': bool(git('status', '-s'))}
    except (OSError, subprocess.CalledProcessError):
        return None


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file whole or not at all; a float that is not finite is null."""
    text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    partial = path.with_name(f'{path.name}.{os.getpid()}.partial')
    partial.write_text(text + '\n', encoding='utf-8')
    os.replace(partial, path)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _read_json(path: pathlib.Path, default: Any) -> Any:
    if not path.exists():
        return default
    try:
        found = parse(path.read_text(encoding='utf-8'))
        if type(found) is not type(default):
            raise JsonError(f'found {shown(found)}')
    except (OSError, ValueError) as error:
        raise ConfigError(
            f'{path}: cannot be read ({error}); delete it or use another workdir'
        ) from error
    return found
