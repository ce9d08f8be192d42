"""Saving and restoring a run: train state, data position, configuration."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from epa_jax import storage
from epa_jax.distributed import lost_peer
from epa_jax.reference import fingerprint
from epa_jax.schema import CheckpointConfig
from epa_jax.types import TrainState

log = logging.getLogger(__name__)

SHOWN = 5  # differing leaves named in an error
# Orbax measures with the wall clock, which may be set while a save is under way. A save
# that hangs is the watchdog's to end.
SAVE_SECONDS = 10**7
DIGESTS = 'digests'  # key beside the data position


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, damaged, of another model, or cannot be written."""


class Restored(NamedTuple):
    """What `Checkpoints.restore` returns.

    Attributes:
      step: updates done when it was saved.
      state: train state, on the shardings asked for.
      data_state: the data iterator's state.
      config: the configuration of the run that saved it.
    """

    step: int
    state: TrainState
    data_state: dict[str, Any]
    config: dict[str, Any]


class _Manager(ocp.CheckpointManager):
    """Orbax's, which leaves it to `interrupt.Interrupts` to hear of a preemption.

    It would ask JAX by the step at every save. JAX compares such numbers among processes to
    agree where all of them stop; they would miss the place by two ways of counting.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """The checkpoints of one run, one folder per step, written in the background.

    A save that was killed leaves a folder `*.orbax-checkpoint-tmp*`; it is not a
    checkpoint and is deleted when the folder is next opened for writing. Digests of all
    that a step holds are saved with it, so that a bit that flipped is noticed.

    Attributes:
      folder: where the steps are.
      config: saved with every step.
    """

    def __init__(
        self,
        folder: str | storage.AnyPath,
        cfg: CheckpointConfig,
        *,
        config: Mapping[str, Any] | None = None,
        read_only: bool = False,
        before_save: Callable[[], None] = lambda: None,
    ):
        """Opens a folder, creating it unless `read_only`.

        Args:
          folder: where the steps are.
          cfg: what is kept.
          config: saved with every step; JSON values.
          read_only: never change the folder, which another process may be writing.
          before_save: called at the start of every save.

        Raises:
          CheckpointError: `read_only` and there is no such folder.
        """
        path = storage.path(folder)
        self.folder = path if storage.is_remote(folder) else path.absolute()
        if read_only and not self.folder.is_dir():
            raise CheckpointError(f'{self.folder}: no such folder of checkpoints')
        self.config = dict(config or {})
        self._before_save = before_save
        self._best_metric = cfg.best_metric if cfg.keep_best else None
        self._manager = _Manager(
            self.folder,
            options=_options(cfg, read_only),
            item_handlers={
                'state': ocp.StandardCheckpointHandler(),
                'data': ocp.JsonCheckpointHandler(),
                'config': ocp.JsonCheckpointHandler(),
            },
        )

    def save(
        self,
        step: int,
        state: TrainState,
        data_state: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Starts a save; nothing happens if this step is already saved.

        Returns when the state is copied, so that its buffers may be donated; writing
        goes on in the background until `wait`.

        Args:
          step: updates done.
          state: train state.
          data_state: the data iterator's state, JSON values.
          metrics: may hold `best_metric`; a step without it, or whose value is not
            finite, never counts among the best.

        Raises:
          CheckpointError: this save, or the one before it, cannot be written.
        """
        if step in self._manager.all_steps():
            return
        self._before_save()
        text = {'data': dict(data_state), 'config': self.config}
        digests = {'state': fingerprint(state), 'text': _text_digest(text)}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            data=ocp.args.JsonSave(text['data'] | {DIGESTS: digests}),
            config=ocp.args.JsonSave(self.config),
        )
        with self._writing():
            self._manager.save(step, args=args, metrics=self._best_only(metrics or {}))

    def latest_step(self) -> int | None:
        """The newest complete step, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """All complete steps, in order."""
        return sorted(self._manager.all_steps())

    def restore(self, abstract: TrainState, step: int | None = None) -> Restored:
        """Reads a checkpoint.

        Args:
          abstract: `jax.ShapeDtypeStruct` leaves with the shardings wanted; the mesh need
            not be the one that saved.
          step: which one; None is the newest.

        Raises:
          CheckpointError: there is none, it is damaged, or a leaf's name, shape or dtype
            differs.
        """
        known = self.steps()
        step = known[-1] if step is None and known else step
        if step is None or step not in known:
            wanted = 'checkpoint' if step is None else f'step {step}'
            raise CheckpointError(f'{self.folder}: no {wanted}; steps found: {known}')
        self._check_leaves(step, abstract)
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract),
            data=ocp.args.JsonRestore(),
            config=ocp.args.JsonRestore(),
        )
        try:
            found = self._manager.restore(step, args=args)
        except Exception as error:  # Orbax and TensorStore raise bare Exception too
            if lost_peer(error):
                raise  # what was saved is as good as before
            raise self._damaged(step, error) from error
        digests = found.data.pop(DIGESTS, None)
        text = {'data': found.data, 'config': found.config}
        if digests is None:
            log.warning('%s: saved without digests, not verified', self.folder / str(step))
        elif digests != {'state': fingerprint(found.state), 'text': _text_digest(text)}:
            raise self._damaged(step, ValueError('not what was saved'))
        return Restored(step, found.state, found.data, found.config)

    def wait(self) -> None:
        """Blocks until every save has been written.

        Raises:
          CheckpointError: one could not be.
        """
        with self._writing():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise bare Exception too
            if lost_peer(error):
                raise
            raise CheckpointError(
                f'{self.folder}: cannot be written ({_first_line(error)}); make room or '
                'give write access; the same command then goes on from the newest '
                'complete step'
            ) from error

    def close(self) -> None:
        """Waits for saves, then releases the manager's threads."""
        try:
            self.wait()
        finally:
            with self._writing():
                self._manager.close()

    def _best_only(self, metrics: Mapping[str, float]) -> dict[str, float] | None:
        """The metric that ranks steps, if finite; None when nothing is ranked."""
        name = self._best_metric
        if name is None:
            return None
        if name not in metrics or not math.isfinite(metrics[name]):
            return {}
        return {name: float(metrics[name])}

    def _check_leaves(self, step: int, abstract: TrainState) -> None:
        """Compares names, shapes and dtypes: Orbax would cast dtypes without a word."""
        try:
            tree = self._manager.item_metadata(step)['state'].tree
        except Exception as error:  # whatever a damaged folder provokes
            if lost_peer(error):
                raise
            raise self._damaged(step, error) from error
        found, expected = _describe(tree), _describe(abstract)
        missing = dict.fromkeys(expected.keys() | found.keys(), 'none')
        found, expected = missing | found, missing | expected
        wrong = [
            f'{name}: expected {expected[name]}, found {found[name]}'
            for name in sorted(missing)
            if expected[name] != found[name]
        ]
        if wrong:
            more = f'\n  and {len(wrong) - SHOWN} more' if len(wrong) > SHOWN else ''
            raise CheckpointError(
                f'{self.folder / str(step)}: of another model or optimizer:\n  '
                + '\n  '.join(wrong[:SHOWN])
                + more
            )

    def _damaged(self, step: int, error: Exception) -> CheckpointError:
        return CheckpointError(
            f'{self.folder / str(step)}: cannot be read ({_first_line(error)}); where '
            'it is damaged, delete this folder to go on from an earlier step, or else from '
            'the beginning'
        )


def _first_line(error: Exception) -> str:
    return f'{type(error).__name__}: {(str(error).splitlines() or [""])[0]}'


def _text_digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


@dataclasses.dataclass
class KeepBest(checkpoint_managers.PreservationPolicy):
    """Preserves the `n` steps with the best metric; never one without the metric.

    Attributes:
      n: how many.
      metric: its name.
      mode: 'max' or 'min'.
    """

    n: int
    metric: str
    mode: str

    def should_preserve(
        self,
        checkpoints: Sequence[checkpoint_managers.PolicyCheckpointInfo],
        *,
        context: checkpoint_managers.PreservationContext,
    ) -> Sequence[bool]:
        """Whether each checkpoint stays; of equal ones, the earlier is better."""
        sign = -1 if self.mode == 'max' else 1
        ranked = sorted(
            (sign * info.metrics[self.metric], info.step)
            for info in checkpoints
            if info.metrics and self.metric in info.metrics
        )
        best = {step for _, step in ranked[: self.n]}
        return [info.step in best for info in checkpoints]


def _options(cfg: CheckpointConfig, read_only: bool) -> ocp.CheckpointManagerOptions:
    keep: list[checkpoint_managers.PreservationPolicy]
    keep = [checkpoint_managers.LatestN(cfg.keep_last)]
    if cfg.keep_best:
        keep.append(KeepBest(cfg.keep_best, cfg.best_metric, cfg.best_mode))
    return ocp.CheckpointManagerOptions(
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(keep),
        # Only makes Orbax store metrics; which steps stay is the policy's decision.
        best_fn=(lambda metrics: metrics[cfg.best_metric]) if cfg.keep_best else None,
        best_mode=cfg.best_mode,
        cleanup_tmp_directories=not read_only,
        create=not read_only,
        read_only=read_only,
        async_options=ocp.AsyncOptions(
            timeout_secs=SAVE_SECONDS, create_directories_asynchronously=False
        ),
    )


def _describe(tree: Any) -> dict[str, str]:
    """'params.layers.q' -> 'float32 (3, 16, 4, 8)', for every leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator='.'): (
            f'{leaf.dtype} {tuple(leaf.shape)}'
        )
        for path, leaf in leaves
    }
