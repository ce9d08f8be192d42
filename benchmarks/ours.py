"""Steps of this package's own training loop: python -m benchmarks.ours --help.

The loop, its data and its programs are those of `python -m epa_jax.train`; only
checkpoints and files are left out. Reference log-probs are cached before the first step,
and what their forward pass costs is measured afterwards and written beside.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks import flops, machine, workload
from benchmarks.records import Recorder
from epa_jax.checkpoints import Checkpoints
from epa_jax.loop import Loop, Outputs
from epa_jax.prepare import Job
from epa_jax.writers import Writers

REFERENCE_ROUNDS = 3  # of the reference's pass; the median counts


class Steps:
    """Progress that writes a line for every step that the loop reports."""

    def __init__(self, job: Job, recorder: Recorder):
        """Starts to count compilations."""
        self._job, self._recorder = job, recorder
        self._traces = 0

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes the step; it compiled when a function was traced since the last."""
        traces = self._job.programs.traces.total()
        self._recorder.step(
            compiled=traces > self._traces,
            loss=metrics['loss'],
            chosen_logp=metrics['logps/chosen'],
        )
        self._traces = traces

    def close(self) -> None:
        """Nothing to leave."""


class NoCheckpoints(Checkpoints):
    """Saves nothing."""

    def __init__(self) -> None:
        """Opens nothing."""

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing."""


def train(job: Job, recorder: Recorder) -> None:
    """Runs the job to its end and writes its steps."""
    outputs = Outputs(Writers([]), Steps(job, recorder), NoCheckpoints())
    loop = Loop(job, outputs, job.initial_state(), 0)
    recorder.start()
    loop.run(job.batches.train.steps())


def reference_seconds(job: Job, steps: int) -> float:
    """Seconds that the reference's forward pass takes for the prompts of a step.

    It is the pass that fills the cache, packed as that one is: the prompts of all steps
    together. Those of the first are left out, as their step is, and so is compilation.
    """
    data, params = job.batches.train.preference, job.weights.base
    measured = workload.groups_of_steps(data, steps)[min(1, steps - 1) :]
    groups = [group for step in measured for group in step]
    batches = [job.programs.place(batch) for batch in data.settled(groups).pack(groups)]

    def seconds() -> float:
        start = time.perf_counter()
        jax.block_until_ready([job.programs.table(params, job.frozen, b) for b in batches])
        return time.perf_counter() - start

    jax.block_until_ready(job.programs.table(params, job.frozen, batches[0]))  # compiles
    return statistics.median(seconds() for _ in range(REFERENCE_ROUNDS)) / len(measured)


def measured(setting: workload.Setting, recorder: Recorder, **values: object) -> None:
    """Builds the run, trains, and writes every line."""
    recorder.write(
        'header',
        contestant='ours',
        variant=variant(values),
        machine=machine.machine(),
        matmul_flops=machine.matmul_rate(setting.dtype),
        **dataclasses.asdict(setting),
    )
    with tempfile.TemporaryDirectory() as folder:
        run = workload.run_config(setting, Path(folder), **values)
        job = workload.make_job(run)
        train(job, recorder)
        in_step = run.reference.mode == 'in_step'
        seconds = 0.0 if in_step else reference_seconds(job, setting.steps)
        steps = workload.groups_of_steps(job.batches.train.preference, setting.steps)
        cells = sum(
            batch.tokens.size
            for groups in steps
            for batch in job.batches.train.preference.pack(groups)
        )
    needed = [flops.of_groups(job.spec, workload.as_lists(g)) for g in steps]
    recorder.end(
        reference_seconds=seconds,
        reference_in_step=in_step,
        computed_tokens=cells / len(steps),
        needed_flops=statistics.fmean(needed),
    )


def variant(values: Mapping[str, object]) -> str:
    """The keys that are not a benchmark's first choice."""
    return '+'.join(f'{k.replace("__", ".")}={v}' for k, v in values.items()) or 'plain'


def main(argv: Sequence[str] | None = None) -> None:
    """Measures one setting."""
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.ours', description='Seconds and memory of our steps.'
    )
    workload.add_arguments(parser)
    add = parser.add_argument
    add('--set', nargs='*', default=[], metavar='KEY=VALUE', help='keys of the run')
    add('--out', type=Path, help='file of lines; standard output without it')
    args = parser.parse_args(argv)
    measured(workload.setting_of(args), Recorder(args.out), **keys(args.set))


def keys(pairs: Sequence[str]) -> dict[str, object]:
    """'model.remat=full' as a key with its value, typed as the schema says."""
    from epa_jax.config import check_key, parse

    out: dict[str, object] = {}
    for pair in pairs:
        key, _, value = pair.partition('=')
        check_key(key, '--set ')
        out[key.replace('.', '__')] = parse(key, value, '--set ')
    return out


if __name__ == '__main__':
    main()
