"""The GPU's benchmark and the planned memory, at tiny size on the CPU."""

import csv

import pytest

from benchmarks import gpu_mfu, memory, task
from epa_jax.vocabulary import Blocks


def test_a_tiny_step_is_measured(tmp_path):
    out = tmp_path / 'mfu.csv'
    gpu_mfu.main(
        [
            '--shape=tiny',
            '--prompts=2',
            '--steps=3',
            '--rows=1',
            '--ratio=1:1:2',
            '--peak-tflops=1',
            '--peak-gbs=10',
            f'--out={out}',
        ]
    )
    with out.open() as file:
        (row,) = csv.DictReader(file)
    assert row['contestant'] == 'ours'
    assert int(row['steps']) == 2
    reached = float(row['needed_tflop']) / float(row['seconds'])
    assert float(row['mfu']) == pytest.approx(reached, rel=1e-3)  # of 1 TFLOP/s
    least = float(row['share_of_roofline']) * float(row['seconds'])
    assert float(row['roofline_seconds']) == pytest.approx(least, rel=1e-3)


def test_the_roofline_is_the_slower_of_operations_and_traffic():
    peak = gpu_mfu.Peak(flops=100.0, bandwidth=10.0)
    update = 5 * (2 * 2 + 16 + 4) / 10
    busy = gpu_mfu.roofline(peak, needed=1000, parameters=5, param_bytes=2, batches=1)
    assert busy == pytest.approx(10 + update)
    idle = gpu_mfu.roofline(peak, needed=1, parameters=5, param_bytes=2, batches=3)
    assert idle == pytest.approx(2 * 2 * 5 * 3 / 10 + update)


def test_a_device_needs_a_peak():
    assert gpu_mfu.peak_of('NVIDIA H100 80GB HBM3', 0, 0).flops == 989e12
    assert gpu_mfu.peak_of('cpu', 2, 3) == gpu_mfu.Peak(2e12, 3e9)
    with pytest.raises(task.TaskError, match='--peak-tflops'):
        gpu_mfu.peak_of('cpu', 0, 0)


def test_log_probs_take_less_memory_than_logits():
    (row,) = memory.logprob_rows((4096,), (2,), length=256, width=8, blocks=Blocks(16, 512))
    assert 0 < row['temp_mb'] < row['logits_mb']


def test_recomputing_layers_takes_less_memory():
    rows = memory.remat_rows(
        'tiny', task.Ratio(1, 0), prompts=4, rounds=0, policies=('none', 'full')
    )
    planned = {row['remat']: row['temp_mb'] for row in rows}
    assert planned['full'] < planned['none']
