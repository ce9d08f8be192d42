"""Trains a policy: python -m epa_jax.train --config=experiments/X.py --config.key=value."""

import dataclasses
import logging
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import absl.logging
import jax
from absl import app, flags
from ml_collections import config_flags

from epa_jax.attendance import Guards, attended
from epa_jax.checkpoints import CheckpointError, Checkpoints
from epa_jax.command_line import check_flags, parse_flags
from epa_jax.config import ConfigError, profile_steps, resolve
from epa_jax.data.fingerprint import check_data, data_fingerprint
from epa_jax.data.load import load_datasets
from epa_jax.data.negatives import NegativesError
from epa_jax.data.sources import DataError
from epa_jax.data.streams import load_streams
from epa_jax.distributed import HEARTBEAT_SECONDS, connect, lost_peer
from epa_jax.formats.export import export_adapter, export_model
from epa_jax.formats.names import FormatError
from epa_jax.formats.tokenizer import load_tokenizer
from epa_jax.guard import GuardError
from epa_jax.interrupt import RUN_AGAIN, Interrupted, Interrupts, of_storage
from epa_jax.loop import OWED, Loop, Outputs, TrainingError
from epa_jax.losses import LOSSES, LossDef
from epa_jax.model_card import model_card
from epa_jax.models.hf_config import SpecError
from epa_jax.models.spec import ModelSpec
from epa_jax.models.transformer import num_params
from epa_jax.monitor import Monitor, monitored
from epa_jax.prepare import Job, loss_of, prepare
from epa_jax.progress import Progress, SilentProgress, make_progress
from epa_jax.reference import StaleCacheError
from epa_jax.run_folder import RunFolder, open_run_folder
from epa_jax.run_lock import locked
from epa_jax.schema import RunConfig
from epa_jax.storage import AnyPath, StorageError
from epa_jax.strict_json import brief
from epa_jax.types import Params
from epa_jax.watchdog import Watchdog
from epa_jax.weights import base_fingerprint, check_base
from epa_jax.writers import Writers, open_writers, read_evaluations

log = logging.getLogger('epa_jax.train')  # not __main__

# What a user can mend: shown as one message, without a traceback.
USER_ERRORS = (
    ConfigError,
    DataError,
    NegativesError,
    FormatError,
    SpecError,
    StaleCacheError,
    CheckpointError,
    GuardError,
    TrainingError,
    StorageError,
)


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What a run ends with.

    Attributes:
      folder: the run folder.
      spec: architecture of the policy.
      params: its parameters, adapters attached (`models.lora.merge` merges them).
      summary: what summary.json holds.
    """

    folder: AnyPath
    spec: ModelSpec
    params: Params
    summary: dict[str, Any]


def train(run: RunConfig, losses: Mapping[str, LossDef] = LOSSES) -> TrainResult:
    """Runs, or resumes, a whole run.

    Args:
      run: from `config.resolve`.
      losses: that `loss.name` may name; to try one of your own, hand over
        `{**LOSSES, 'mine': LossDef(...)}`.

    Raises:
      ConfigError: keys that contradict one another, the data, the model or the devices.
      loop.TrainingError: too many updates in a row that were not finite.
      guard.GuardError: the policy does not start at its reference.
      interrupt.Interrupted: it was asked to stop; nothing is lost if it had begun to train.
    """
    with Interrupts() as interrupts, locked(run.workdir), monitored() as monitor:
        loss_of(run, losses)  # what cannot work is refused before any work
        folder = open_run_folder(run)
        with folder.mirrored():
            watchdog = Watchdog(60 * run.max_step_minutes)
            return _in_folder(run, losses, folder, Guards(interrupts, monitor, watchdog))


def _in_folder(
    run: RunConfig, losses: Mapping[str, LossDef], folder: RunFolder, guards: Guards
) -> TrainResult:
    """`train`, alone in the open run folder."""
    loss = loss_of(run, losses)
    profile = profile_steps(run.log.profile_steps)
    with attended(guards, folder, profile) as attend:
        tokenizer = load_tokenizer(run.model.tokenizer or run.model.path)
        datasets = load_datasets(run.data, tokenizer, min_strong=loss.needs.min_strong)
        streams = load_streams(run, tokenizer, {e.prompt_key for e in datasets.held_out})
        job = prepare(run, datasets, tokenizer, streams, losses, attend)
        texts = [part for stream in streams for part in (stream.train, stream.held_out)]
        made_from = data_fingerprint([datasets.train, datasets.held_out, *texts])
        if job.weights.lora is not None:
            made_from |= base_fingerprint(job.weights.base)
        return _run(job, folder, guards, made_from)


def _run(
    job: Job, folder: RunFolder, guards: Guards, made_from: dict[str, str]
) -> TrainResult:
    """All that writes into the run folder."""
    run, monitor = job.run, guards.monitor
    checkpoints = Checkpoints(
        folder.checkpoints,
        run.checkpoint,
        config=folder.config | made_from,
        before_save=folder.before_save,
    )
    try:
        loop = _run_loop(job, folder, checkpoints, guards)
    finally:
        with monitor.during('save'):
            checkpoints.close()
    summary = _summary(job, folder, loop, monitor)
    if run.export:
        _export(job, folder, loop.state.params, model_card(folder.config, summary))
    if jax.process_index() == 0:
        folder.write_summary(summary)
    policy = job.frozen.policy(loop.state.params)
    return TrainResult(folder.home, job.spec, policy, summary)


def _export(job: Job, folder: RunFolder, trained: Params, card: str) -> None:
    """The whole model, or its adapters where those were trained."""
    if job.weights.lora is None:
        dtype = job.run.model.param_dtype
        export_model(folder.export, job.spec, trained, job.tokenizer, dtype, card, True)
    else:
        export_adapter(
            folder.export,
            job.spec,
            trained,
            job.weights.lora,
            job.run.model.path,
            job.tokenizer,
            card,
            overwrite=True,
        )


def _run_loop(
    job: Job, folder: RunFolder, checkpoints: Checkpoints, guards: Guards
) -> Loop:
    """Starts from the newest checkpoint, or from the beginning, and runs to the end."""
    batches = job.batches.train.steps()
    step = checkpoints.latest_step() if job.run.checkpoint.resume else None
    owed = False
    if step is None:
        state = job.initial_state()
    else:
        with guards.monitor.during('restore'):
            restored = checkpoints.restore(job.abstract, step)
        check_data(restored.config, checkpoints.config, str(folder.checkpoints))
        if job.weights.lora is not None:
            check_base(restored.config, job.weights.base, str(folder.checkpoints))
        state = restored.state
        owed = restored.data_state.pop(OWED, False)
        batches.set_state(restored.data_state)
        log.info('resumed from step %d of %s', step, folder.checkpoints)
    progress: Progress = SilentProgress()
    writers = Writers([])
    if jax.process_index() == 0:
        progress = make_progress(job.total_steps, first=step or 0, every=job.run.log.every)
        writers = open_writers(
            folder.path, job.run.log, config=folder.config, restored_step=step, owed=owed
        )
    outputs = Outputs(writers, progress, checkpoints, guards.monitor)
    loop = Loop(job, outputs, state, step or 0, guards.interrupts, guards.watchdog, owed)
    try:
        with guards.interrupts.deferred(), guards.watchdog:
            try:
                with guards.monitor.during('step'):
                    loop.run(batches)
            finally:
                with guards.monitor.during('save'):
                    checkpoints.wait()
    finally:
        progress.close()
        writers.close()
    return loop


def _summary(job: Job, folder: RunFolder, loop: Loop, monitor: Monitor) -> dict[str, Any]:
    """The outcome of a run; evaluations are those of all its starts."""
    tally, watched = loop.tally, monitor.summary()
    evaluations = read_evaluations(folder.path / 'metrics.jsonl')
    return {
        'steps': loop.step,
        'skipped_updates': int(loop.state.skipped),
        'loss': job.loss.name,
        'hyperparameters': dict(job.loss.hyperparameters),
        'parameters': num_params(job.spec),
        'trained_parameters': sum(p.size for p in jax.tree.leaves(loop.state.params)),
        'train': tally.metrics,
        'eval_first': evaluations[0] if evaluations else None,
        'eval_last': evaluations[-1] if evaluations else None,
        'seconds': sum(watched['phase_seconds'].values()),
        'first_step_seconds': tally.first_seconds,
        'seconds_per_step': tally.other_seconds / max(tally.steps - 1, 1),
        'tokens': tally.tokens,
        'padding': 1 - tally.tokens / tally.cells if tally.cells else 0.0,
        'tokens_per_second': tally.other_tokens / max(tally.other_seconds, 1e-9),
        'traces': dict(job.programs.traces),
    } | watched


CONFIG = config_flags.DEFINE_config_file(
    'config', help_string='An experiment, such as experiments/stories260k_epa.py.'
)
_DISTRIBUTED = flags.DEFINE_bool(
    'distributed', False, 'This is one of several processes, see epa_jax/distributed.py.'
)
_HEARTBEAT = flags.DEFINE_integer(
    'heartbeat_seconds',
    HEARTBEAT_SECONDS,
    'With --distributed: silence of a process after which the others end too.',
    lower_bound=1,
)


def main(argv: list[str]) -> None:
    """Entry point."""
    if len(argv) > 1:
        raise app.UsageError(f'unexpected arguments: {" ".join(argv[1:])}')
    result = train(resolve(CONFIG.value))
    print(f'run folder: {result.folder}')


def show_log() -> None:
    """Shows this package's log, and of other libraries warnings alone.

    Of several processes the first has the terminal; the others keep theirs in logs/.
    """
    absl.logging.set_verbosity(absl.logging.WARNING)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter('%(message)s'))
    own = logging.getLogger('epa_jax')
    handler.setLevel(logging.INFO if jax.process_index() == 0 else logging.ERROR)
    own.addHandler(handler)
    own.setLevel(logging.INFO)
    own.propagate = False


def run_flags(main: Callable[[list[str]], None]) -> None:
    """Checks the command line before absl reads it, and shows bad input as one message."""

    def connected(argv: list[str]) -> None:
        if _DISTRIBUTED.value:  # before anything asks for a device, as the log does
            connect(_HEARTBEAT.value)
        show_log()
        try:
            main(argv)
        except jax.errors.JaxRuntimeError as error:
            if not lost_peer(error):
                raise
            print(
                f'another process is gone ({error}); the same command, in all processes, '
                'goes on from the newest checkpoint',
                file=sys.stderr,
                flush=True,
            )
            os._exit(RUN_AGAIN)  # what runs at exit would wait for the process

    try:
        check_flags(sys.argv[1:])
        app.run(connected, flags_parser=parse_flags)
    except USER_ERRORS as error:
        sys.exit(brief(f'{type(error).__name__}: {error}'))
    except OSError as error:
        message = of_storage(error)
        if message is None:
            raise
        sys.exit(message)
    except Interrupted as notice:
        print(notice.message, file=sys.stderr)
        raise


def run_main() -> None:
    """Shows bad input as one message."""
    run_flags(main)


if __name__ == '__main__':
    run_main()
