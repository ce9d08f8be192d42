"""Share of a GPU's peak that a training step reaches: python -m benchmarks.gpu_mfu --help.

Random weights, the lengths of HH-RLHF prompts and responses (benchmarks/lengths_hh.csv),
matrix products in bfloat16. The same tokens go to TRL's DPOTrainer where --trl-python
names an interpreter that has it, with flash attention where that is installed there.
Beside it stands the roofline: no step is faster than its operations at the peak rate, or
its unavoidable traffic of parameters at the memory's rate.
"""

import argparse
import dataclasses
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from benchmarks import flops, machine, records, synthetic, task, workload
from epa_jax import programs as programs_lib
from epa_jax import sharding
from epa_jax.frozen import NOTHING
from epa_jax.models import transformer
from epa_jax.models.spec import ModelSpec
from epa_jax.optim import make_optimizer
from epa_jax.schema import MeshConfig, OptimConfig
from epa_jax.train_step import init_state
from epa_jax.types import PackedBatch, TrainState

RESULTS = machine.REPO / 'benchmarks' / 'results' / 'gpu_mfu.csv'


class Peak(NamedTuple):
    """What a device can do at best: bfloat16 operations and bytes of memory a second."""

    flops: float
    bandwidth: float


# Dense bfloat16, from the vendor's data sheets; the first name that the device's holds.
PEAKS = {
    'H200': Peak(989e12, 4.8e12),
    'H100': Peak(989e12, 3.35e12),
    'A100': Peak(312e12, 2.0e12),
    'L40': Peak(181e12, 0.864e12),
    'L4': Peak(121e12, 0.3e12),
    'A10': Peak(125e12, 0.6e12),
}


def peak_of(kind: str, tflops: float, gb_per_second: float) -> Peak:
    """The peak of a device by its name, or the one given.

    Raises:
      TaskError: an unknown device and no figures for it.
    """
    if tflops and gb_per_second:
        return Peak(tflops * 1e12, gb_per_second * 1e9)
    for name, peak in PEAKS.items():
        if name in kind:
            return peak
    raise task.TaskError(
        f'{kind!r}: its peak is not known here; give --peak-tflops and --peak-gbs'
    )


def roofline(
    peak: Peak, needed: float, parameters: int, param_bytes: int, batches: int
) -> float:
    """Least seconds of a step.

    Operations against traffic of the gradient (parameters read forward and backward for
    every micro-batch), then the update: parameter and two moments read and written and a
    gradient read, moments and gradient in float32.

    Args:
      peak: of the device.
      needed: operations of the step.
      parameters: how many.
      param_bytes: of each.
      batches: micro-batches.
    """
    read = 2.0 * param_bytes * parameters * batches
    update = parameters * (2.0 * param_bytes + 2 * 2 * 4 + 4)
    return max(needed / peak.flops, read / peak.bandwidth) + update / peak.bandwidth


@dataclasses.dataclass(frozen=True)
class Step:
    """A whole training step on one device.

    Attributes:
      programs: compiled functions.
      state: before the first update.
      steps: micro-batches of every step.
    """

    programs: programs_lib.Programs
    state: TrainState
    steps: list[list[PackedBatch]]


def build(args: argparse.Namespace, spec: ModelSpec, steps: list[list[Any]]) -> Step:
    """Programs of the package, random weights, packed rows."""
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    compute = transformer.Compute(
        dtype=args.dtype,
        remat=args.remat,
        attention=args.attention,
        logprob_chunk=args.chunk,
        vocab_block=args.vocab_block,
        mesh=mesh,
    )
    goal = synthetic.objective(spec, task.ratio(args.ratio), compute)
    config = OptimConfig(name=args.optimizer, mu_dtype=args.mu_dtype)
    optimizer, _ = make_optimizer(config, len(steps))
    shapes = transformer.abstract_params(spec, args.param_dtype)
    where = sharding.param_shardings(mesh, shapes, transformer.logical_axes(spec))
    init = jax.jit(
        lambda key: transformer.init_params(spec, key, args.param_dtype),
        out_shardings=where,
    )
    params = init(jax.random.key(0))
    abstract = programs_lib.abstract_state(params, optimizer, mesh)
    layout = synthetic.layout([g for groups in steps for g in groups], args.rows)
    packed = [synthetic.pack(groups, layout) for groups in steps]
    made = programs_lib.build(goal, optimizer, abstract, packed[0][0], mesh)
    start = jax.jit(
        lambda p: init_state(p, optimizer), out_shardings=programs_lib.shardings(abstract)
    )
    placed = [[made.place(batch) for batch in batches] for batches in packed]
    return Step(made, start(params), placed)


def timed(step: Step) -> tuple[list[float], TrainState]:
    """Seconds of every step, the first of which compiles, and the last state."""
    state, taken = step.state, []
    for batches in step.steps:
        start = time.perf_counter()
        state = one(step.programs, state, batches)
        taken.append(time.perf_counter() - start)
    return taken, state


def one(
    programs: programs_lib.Programs, state: TrainState, batches: Sequence[PackedBatch]
) -> TrainState:
    """One step, waited for."""
    total = programs.zero()
    for batch in batches:
        total = programs.accumulate(total, state.params, NOTHING, batch)
    state, metrics = programs.update(state, total, ())
    jax.block_until_ready((state, metrics))
    return state


def reference_seconds(step: Step, state: TrainState) -> float:
    """Seconds of the forward pass that caches the reference of the last step's prompts."""

    def run() -> None:
        table, params = step.programs.table, state.params
        jax.block_until_ready([table(params, NOTHING, batch) for batch in step.steps[-1]])

    return machine.median_seconds(run, total=0.0)


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """The row of our own step."""
    spec, steps = work(args)
    step = build(args, spec, steps)
    (first, *taken), state = timed(step)
    if args.trace:
        with jax.profiler.trace(str(args.trace)):
            state = one(step.programs, state, step.steps[-1])
    seconds = records.spread(taken)
    reference = reference_seconds(step, state)
    needed = statistics.fmean(
        flops.of_groups(spec, workload.as_lists(g)) for g in steps[1:]
    )
    device = jax.devices()[0]
    peak = peak_of(device.device_kind, args.peak_tflops, args.peak_gbs)
    size = transformer.num_params(spec)
    bytes_each = 2 if args.param_dtype == 'bfloat16' else 4
    least = roofline(peak, needed, size, bytes_each, len(step.steps[0]))
    stats = device.memory_stats() or {}
    return _row(args, 'ours', seconds, first, reference, needed, peak) | {
        'device': device.device_kind,
        'settings': f'rows={args.rows} attention={args.attention} remat={args.remat} '
        f'{args.optimizer} mu={args.mu_dtype}',
        'roofline_seconds': least,
        'share_of_roofline': least / seconds.median,
        'peak_gb': stats.get('peak_bytes_in_use', records.peak_bytes()) / 1e9,
    }


def work(args: argparse.Namespace) -> tuple[ModelSpec, list[list[Any]]]:
    """The architecture, and the groups of every step."""
    spec = synthetic.spec_of(args.shape)
    lengths = synthetic.real_lengths(task.ratio(args.ratio), args.prompts * args.steps)
    parts = [lengths[i : i + args.prompts] for i in range(0, len(lengths), args.prompts)]
    return spec, [synthetic.groups(p, spec.vocab_size, i) for i, p in enumerate(parts)]


def _row(
    args: argparse.Namespace,
    contestant: str,
    seconds: records.Spread,
    first: float,
    reference: float,
    needed: float,
    peak: Peak,
) -> dict[str, Any]:
    return {
        'shape': args.shape,
        'ratio': args.ratio,
        'prompts': args.prompts,
        'dtype': args.dtype,
        'param_dtype': args.param_dtype,
        'contestant': contestant,
        'seconds': seconds.median,
        'seconds_low': seconds.low,
        'seconds_high': seconds.high,
        'steps': seconds.count,
        'first_seconds': first,
        'reference_seconds': reference,
        'examples_per_second': args.prompts / (seconds.median + reference),
        'needed_tflop': needed / 1e12,
        'mfu': needed / seconds.median / peak.flops,
        'commit': machine.commit(),
    }


def run_trl(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Lines of TRL's steps on the same tokens; before JAX takes the GPU's memory."""
    _, steps = work(args)
    lists = [workload.as_lists(groups) for groups in steps]
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / 'steps.jsonl', Path(folder) / 'lines.jsonl'
        task.write_steps(path, lists)
        command = [args.trl_python, '-m', 'benchmarks.trl_dpo', '--shape', args.shape]
        command += ['--steps', str(args.steps), '--dtype', args.dtype]
        command += ['--steps-file', str(path), '--out', str(out)]
        command += ['--param-dtype', args.param_dtype]
        command += ['--device', args.trl_device, *args.trl_args.split()]
        environment = os.environ | {'HF_HUB_OFFLINE': '1'}
        subprocess.run(command, check=True, cwd=machine.REPO, env=environment)
        return records.read(out)


def of_trl(
    args: argparse.Namespace, lines: list[dict[str, Any]], ours: dict[str, Any]
) -> dict[str, Any]:
    """The row of TRL's step; its reference runs in the step."""
    spec, steps = work(args)
    lists = [workload.as_lists(groups) for groups in steps]
    end = lines[-1]
    needed = statistics.fmean(
        flops.of_pairs(spec, s, end['reference_in_step']) for s in lists[1:]
    )
    seconds = records.spread(records.steps(lines, compiled=False))
    peak = peak_of(ours['device'], args.peak_tflops, args.peak_gbs)
    first = records.steps(lines, compiled=True)[0]
    peak_bytes = end['device_peak_bytes'] or end['peak_bytes']
    name = f'trl {lines[0]["variant"]}'
    reference = end['reference_seconds']
    return _row(args, name, seconds, first, reference, needed, peak) | {
        'device': ours['device'],
        'settings': args.trl_args,
        'roofline_seconds': '',
        'share_of_roofline': '',
        'peak_gb': peak_bytes / 1e9,
    }


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.gpu_mfu',
        description='Share of the peak that a training step reaches on one GPU.',
    )
    add = parser.add_argument
    add('--shape', default='135M', choices=sorted(task.SHAPES))
    add('--ratio', default='1:1', help='1:1 is DPO; 1:1:2 EPA')
    add('--prompts', type=int, default=64, help='of a step')
    add('--steps', type=int, default=8, help='the first of which compiles')
    add('--rows', type=int, default=8, help='rows of a micro-batch')
    add('--dtype', default='bfloat16', choices=task.DTYPES)
    add('--param-dtype', default='float32', choices=task.DTYPES)
    add('--optimizer', default='adamw', choices=('adamw', 'adafactor', 'rmsprop'))
    add('--remat', default='none', help='see model.remat')
    add('--attention', default='auto', help='see model.attention')
    add('--chunk', type=int, default=256, help='see model.logprob_chunk; 0 is all')
    add('--vocab-block', type=int, default=16384, help='see model.vocab_block')
    add('--mu-dtype', default='float32', choices=task.DTYPES, help='see optim.mu_dtype')
    add('--peak-tflops', type=float, default=0.0, help='of a device not known here')
    add('--peak-gbs', type=float, default=0.0, help='GB a second of its memory')
    add('--trl-python', default='', help='interpreter with torch and trl; none without')
    add('--trl-device', default='cuda', choices=('cpu', 'cuda'))
    add('--trl-args', default='', help='such as "--attention flash_attention_2"')
    add('--trace', type=Path, help="folder for the profiler's trace of the last step")
    add('--out', type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    if args.trl_python and args.ratio != '1:1':
        parser.error('--trl-python: TRL knows pairs alone; --ratio=1:1')
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Measures one setting; rows of others in the file stay."""
    args = arguments(argv)
    print(machine.machine())
    lines = run_trl(args) if args.trl_python else []
    rows = [measured(args)]
    if lines:
        rows.append(of_trl(args, lines, rows[0]))
    print(records.show(rows))
    setting = ('device', 'shape', 'ratio', 'prompts', 'dtype', 'contestant', 'settings')
    records.write_csv(args.out, records.merged(args.out, rows, setting))


if __name__ == '__main__':
    main()
