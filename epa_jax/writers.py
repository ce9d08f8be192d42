"""Where metrics go: a JSONL file, TensorBoard, W&B."""

import importlib
import json
import math
import os
import pathlib
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import tensorboardX

from epa_jax.config import ConfigError
from epa_jax.schema import LogConfig
from epa_jax.strict_json import JsonError, parse


class Writer(Protocol):
    """A place for metrics."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records metrics of a step."""

    def close(self) -> None:
        """Flushes, and frees what the writer holds."""


class JsonlWriter:
    """One JSON object a line: 'step', then the metrics; a non-finite value is null.

    Attributes:
      dropped: lines of an earlier start removed on opening.
    """

    def __init__(
        self,
        path: str | pathlib.Path,
        restored_step: int | None = None,
        owed: bool = False,
    ):
        """Opens the file to append.

        Args:
          path: the file.
          restored_step: a run that resumes from this step writes the later ones again, so
            lines beyond it, and a torn last line, are removed; None removes all.
          owed: it evaluates this step, so an evaluation of it is removed too.
        """
        self._path = pathlib.Path(path)
        self.dropped = self._trim(-1 if restored_step is None else restored_step, owed)
        self._file = self._path.open('a', encoding='utf-8')

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends a line and hands it to the operating system."""
        values = {k: float(v) for k, v in metrics.items()}
        line = {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._file.write(json.dumps({'step': step} | line) + '\n')
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _trim(self, last: int, owed: bool) -> int:
        if not self._path.exists():
            return 0
        text = self._path.read_text(encoding='utf-8', errors='replace')
        lines = text.splitlines(keepends=True)
        kept = [line for line in lines if _is_before(line, last, owed)]
        partial = self._path.with_name(self._path.name + '.partial')
        partial.write_text(''.join(kept), encoding='utf-8')
        os.replace(partial, self._path)
        return len(lines) - len(kept)


def _is_before(line: str, last: int, owed: bool) -> bool:
    """Whether a line is whole and of what a run that resumes will not write again."""
    found = _metrics_of(line) if line.endswith('\n') else None
    if found is None or found['step'] > last:
        return False
    return not (owed and found['step'] == last and _is_evaluation(found))


def _is_evaluation(metrics: Mapping[str, Any]) -> bool:
    return any(name.startswith('eval/') for name in metrics)


def _metrics_of(line: str) -> dict[str, Any] | None:
    """The object of a line with its step; None of anything else."""
    try:
        found = parse(line)
    except JsonError:
        return None
    known = isinstance(found, dict) and type(found.get('step')) is int
    return found if known else None


class TensorBoardWriter:
    """TensorBoard event files; events beyond the restored step are hidden."""

    def __init__(self, folder: str | pathlib.Path, restored_step: int | None = None):
        purge = 0 if restored_step is None else restored_step + 1
        self._events = tensorboardX.SummaryWriter(str(folder), purge_step=purge)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a scalar for every metric."""
        for name, value in metrics.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes the event file."""
        self._events.close()


class WandbWriter:
    """A W&B run; a resumed run continues under the id kept in the run folder."""

    def __init__(self, project: str, folder: str | pathlib.Path, config: Mapping[str, Any]):
        """Starts or continues the W&B run.

        Raises:
          ConfigError: wandb is not installed.
        """
        try:
            wandb = importlib.import_module('wandb')
        except ImportError as error:
            raise ConfigError(
                f"log.wandb={project!r} needs wandb: pip install wandb, or set log.wandb=''"
            ) from error
        folder = pathlib.Path(folder)
        id_file = folder / 'wandb_id.txt'
        if not id_file.exists():
            id_file.write_text(uuid.uuid4().hex, encoding='utf-8')
        self._run = wandb.init(
            project=project,
            name=folder.name,
            id=id_file.read_text(encoding='utf-8').strip(),
            resume='allow',
            dir=str(folder),
            config=dict(config),
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Logs the metrics."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Uploads what remains."""
        self._run.finish()


class Writers:
    """Several writers as one."""

    def __init__(self, writers: Sequence[Writer]):
        self._writers = writers

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records metrics in every place."""
        for writer in self._writers:
            writer.write(step, metrics)

    def close(self) -> None:
        """Closes all of them."""
        for writer in self._writers:
            writer.close()


def open_writers(
    folder: str | pathlib.Path,
    log: LogConfig,
    *,
    config: Mapping[str, Any],
    restored_step: int | None,
    owed: bool = False,
) -> Writers:
    """The writers that `log` asks for; call it on the first process only.

    Args:
      folder: the run folder; gets metrics.jsonl and tensorboard/.
      log: which writers.
      config: flat configuration, shown by W&B.
      restored_step: step of the checkpoint that the run continues from, or None.
      owed: it begins with the evaluation of that step.

    Raises:
      ConfigError: W&B is asked for and not installed.
    """
    folder = pathlib.Path(folder)
    # W&B first: it is the one that can refuse, and nothing is touched by then.
    writers: list[Writer] = []
    if log.wandb:
        writers.append(WandbWriter(log.wandb, folder, config))
    writers.append(JsonlWriter(folder / 'metrics.jsonl', restored_step, owed))
    if log.tensorboard:
        writers.append(TensorBoardWriter(folder / 'tensorboard', restored_step))
    return Writers(writers)


def read_evaluations(path: str | pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a metrics file that hold an evaluation, in order.

    None where there is no file: only the first process writes it, which may be on another
    machine.
    """
    path = pathlib.Path(path)
    text = path.read_text(encoding='utf-8', errors='replace') if path.exists() else ''
    found = [_metrics_of(line) for line in text.splitlines()]
    return [line for line in found if line and _is_evaluation(line)]
