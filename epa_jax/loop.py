"""The training loop: batches in, updates, metrics, evaluations and checkpoints out."""

import dataclasses
import logging
import time
from collections.abc import Iterable, Iterator

import grain
import jax

from epa_jax import guard
from epa_jax.checkpoints import Checkpoints
from epa_jax.coupling import sum_up
from epa_jax.data.mixture import StepData
from epa_jax.data.packing import real_tokens
from epa_jax.evals.preference import evaluate
from epa_jax.interrupt import Interrupted, Interrupts
from epa_jax.likelihood import add_streams, measure_streams
from epa_jax.metrics import finalise
from epa_jax.monitor import Monitor
from epa_jax.prepare import Job
from epa_jax.progress import Progress
from epa_jax.rehearsal import rehearse
from epa_jax.train_step import Metrics
from epa_jax.types import PackedBatch, TrainState
from epa_jax.watchdog import Watchdog
from epa_jax.writers import Writers

log = logging.getLogger(__name__)

OWED = 'evaluation_owed'  # beside the data position: see `Loop`


class TrainingError(RuntimeError):
    """A run that cannot go on."""


@dataclasses.dataclass
class Outputs:
    """Where a loop reports to.

    Attributes:
      writers: metrics.
      progress: bar or lines.
      checkpoints: saves.
      monitor: goodput, step times, signs of life.
    """

    writers: Writers
    progress: Progress
    checkpoints: Checkpoints
    monitor: Monitor = dataclasses.field(default_factory=Monitor)


@dataclasses.dataclass
class Tally:
    """What a loop has done since it started.

    Attributes:
      steps: updates attempted.
      tokens: tokens trained on, padding left out.
      cells: tokens computed, padding included.
      first_seconds: wall time of the first step, which compiles.
      other_seconds: wall time of the other steps; evaluations and saves left out.
      other_tokens: tokens of those.
      metrics: of the newest step reported.
      evaluations: by step.
    """

    steps: int = 0
    tokens: int = 0
    cells: int = 0
    first_seconds: float = 0.0
    other_seconds: float = 0.0
    other_tokens: int = 0
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    evaluations: dict[int, dict[str, float]] = dataclasses.field(default_factory=dict)

    def add(self, tokens: int, seconds: float) -> None:
        """Counts one reported step."""
        if self.steps == 0:
            self.first_seconds = seconds
        else:
            self.other_seconds += seconds
            self.other_tokens += tokens
        self.steps += 1
        self.tokens += tokens


class Loop:
    """Drives one run from a step to its end."""

    def __init__(
        self,
        job: Job,
        outputs: Outputs,
        state: TrainState,
        step: int,
        interrupts: Interrupts | None = None,
        watchdog: Watchdog | None = None,
        owed: bool = False,
    ):
        """Sets it up at a step.

        Args:
          job: the run.
          outputs: where it reports to.
          state: train state of `step`.
          step: updates done.
          interrupts: notices to stop; None listens to none.
          watchdog: told of every step, and of every batch of an evaluation.
          owed: the run was stopped before an evaluation that was due at `step` had ended.
        """
        self.interrupts = interrupts or Interrupts()
        self.watchdog = watchdog or Watchdog(0)
        self.owed = owed
        self.job = job
        self.out = outputs
        self.state = state
        self.step = step
        self.tally = Tally()
        self._pending: tuple[int, Metrics, int] | None = None
        self._mark = time.perf_counter()

    def run(self, batches: grain.DatasetIterator) -> TrainState:
        """Trains until the last step and returns the final state.

        Args:
          batches: from `Pipeline.steps`, at the position of this loop's step.

        Raises:
          TrainingError: too many updates in a row were not finite.
          guard.GuardError: the policy does not start at its reference.
          interrupt.Interrupted: asked to stop, and saved.
        """
        run = self.job.run
        if self.step == 0 or self.owed:
            self._evaluate(batches)
        while self.step < self.job.total_steps:
            with self.out.monitor.waiting(self._pending and self._pending[1]):
                data = next(batches)
            if self.step == 0:
                self._check_start(data.preference[0])
            with self.out.monitor.stepping(self.step + 1):
                if self._pending is None and self.tally.steps == 0:
                    self._rehearse()
                metrics = self._update(data)
            self._report()  # the step before, so that the device need not wait for it
            self.step += 1
            self.watchdog.beat()
            self._pending = (self.step, metrics, self._count(data))
            last = self.step == self.job.total_steps
            self.owed = last or self._due(run.log.eval_every)
            if self.interrupts.asked():
                self._save(batches)
                raise self.interrupts.stopped(self.step, run.workdir)
            if self.owed:
                self._evaluate(batches)
            if last or self._due(run.checkpoint.every):
                self._save(batches)
        return self.state

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _rehearse(self) -> None:
        job = self.job
        rehearse(job.programs, job.loss, self.state, job.frozen, job.batches.train)
        self.watchdog.beat()  # several compilations are no step that hangs
        self.out.monitor.beat()

    def _update(self, data: StepData) -> Metrics:
        job, programs = self.job, self.job.programs
        placed = [programs.place(batch) for batch in data.preference]
        total, loss_state = sum_up(programs, job.loss, self.state, job.frozen, placed)
        total, of_streams = add_streams(
            programs,
            total,
            self.state.params,
            job.frozen,
            data.streams,
            job.stream_weights,
            job.run.batch.prompts,
        )
        self.state, metrics = programs.update(self.state, total, loss_state)
        return metrics | of_streams

    def _count(self, data: StepData) -> int:
        """Tokens of a step, over all processes (which pack rows of like fill)."""
        portions = data.streams.values()
        batches = [*data.preference, *(b for portion in portions for b in portion.batches)]
        self.tally.cells += sum(b.tokens.size for b in batches) * jax.process_count()
        return sum(real_tokens(b) for b in batches) * jax.process_count()

    def _report(self) -> None:
        """Waits for the pending step, then checks, counts and writes its metrics."""
        if self._pending is None:
            return
        step, sums, tokens = self._pending
        self._pending = None
        metrics = finalise(sums)
        self._add_total(metrics)
        now = time.perf_counter()
        seconds, self._mark = now - self._mark, now
        self.tally.add(tokens, seconds)
        metrics['lr'] = float(self.job.schedule(step - 1))
        metrics['tokens_per_second'] = tokens / seconds
        metrics['step_seconds'] = seconds
        self.tally.metrics = metrics
        self.out.progress.update(step, metrics)
        self.out.monitor.done(step, seconds)
        if step % self.job.run.log.every == 0 or step == self.job.total_steps:
            self.out.writers.write(step, metrics | self.out.monitor.metrics())
        self._check_finite(step, metrics)

    def _add_total(self, metrics: dict[str, float]) -> None:
        """'loss/total', where streams add to the preference loss."""
        weights = self.job.stream_weights
        if weights:
            nll = sum(weight * metrics[f'{name}/nll'] for name, weight in weights.items())
            metrics['loss/total'] = metrics['loss'] + nll

    def _check_finite(self, step: int, metrics: dict[str, float]) -> None:
        limit = self.job.run.max_bad_steps
        if metrics['skipped_in_a_row'] >= limit:
            raise TrainingError(
                f'step {step}: the loss or its gradient was not finite in {limit} updates '
                'in a row (max_bad_steps); lower optim.lr, or look at metrics.jsonl for '
                'where it began'
            )

    def _check_start(self, batch: PackedBatch) -> None:
        """The step-0 guard, where the policy is its own reference."""
        run, loss = self.job.run, self.job.loss
        if not run.step0_guard or not loss.needs_reference or run.reference.path:
            return
        placed = self.job.programs.place(batch)
        table = self.job.programs.table(self.state.params, self.job.frozen, placed)
        guard.check_start(table, loss, run.model.compute_dtype)
        self._mark = time.perf_counter()

    def _evaluate(self, batches: grain.DatasetIterator) -> None:
        """Measures held-out data, or saves what is owed and leaves, where that is asked."""
        self._report()
        self.owed = True
        try:
            with self.out.monitor.during('evaluation'):
                metrics = self._measure()
        except Interrupted:
            self._save(batches)
            raise
        self.owed = False
        self.out.monitor.compare_processes()
        if metrics:
            self.tally.evaluations[self.step] = metrics
            self.out.writers.write(self.step, metrics)
            log.info('step %d: %s', self.step, _in_words(metrics))
            self._mark = time.perf_counter()

    def _measure(self) -> dict[str, float]:
        """Means over held-out data; empty without any."""
        job, programs, batches = self.job, self.job.programs, self.job.batches
        metrics = {}
        if batches.held_out is not None:
            once = self._heedful(batches.held_out.once())
            metrics = evaluate(programs, self.state, job.frozen, once)
        streams = batches.held_out_streams.items()
        text = {name: self._heedful(data.once()) for name, data in streams}
        return metrics | measure_streams(programs, self.state.params, job.frozen, text)

    def _heedful(self, batches: Iterable[PackedBatch]) -> Iterator[PackedBatch]:
        """The batches, with a sign of life at each, up to where a stop is asked for."""
        for batch in batches:
            self.watchdog.beat()
            self.out.monitor.beat()
            if self.interrupts.asked():
                raise self.interrupts.stopped(self.step, self.job.run.workdir)
            yield batch

    def _save(self, batches: grain.DatasetIterator) -> None:
        self._report()
        metrics = self.tally.evaluations.get(self.step, {})
        position = batches.get_state() | ({OWED: True} if self.owed else {})
        with self.out.monitor.during('save'):
            self.out.checkpoints.save(self.step, self.state, position, metrics)
        self._mark = time.perf_counter()


def _in_words(metrics: dict[str, float]) -> str:
    shown = (
        'eval/loss',
        'eval/rewards/accuracies',
        'eval/rewards/margins',
        'eval/sft/nll',
        'eval/pretrain/nll',
    )
    return ', '.join(f'{name} {metrics[name]:.4f}' for name in shown if name in metrics)
