"""Traces hold the steps asked for; memory peaks are what the system says."""

import gzip
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np

from epa_jax import profiling
from epa_jax.profiling import Profiler, peak_memory


def train(profiler, first, last):
    multiply = jax.jit(lambda x: x @ x)
    for step in range(first, last + 1):
        with profiler.begin(step):
            out = multiply(jnp.ones((8, 8)))
        out.block_until_ready()
        profiler.end(step)


def traced_steps(folder):
    (path,) = folder.rglob('*.trace.json.gz')
    events = json.loads(gzip.decompress(path.read_bytes()))['traceEvents']
    return sorted(int(e['args']['step_num']) for e in events if e.get('name') == 'train')


def test_the_steps_asked_for_are_traced(tmp_path, caplog):
    profiler = Profiler(tmp_path / 'profile', range(3, 6))
    with caplog.at_level(logging.INFO, logger='epa_jax'):
        train(profiler, 1, 8)
    assert traced_steps(tmp_path / 'profile') == [3, 4, 5]
    assert str(tmp_path / 'profile') in caplog.text


def test_a_run_that_ends_early_keeps_its_trace(tmp_path):
    profiler = Profiler(tmp_path, range(2, 100))
    train(profiler, 1, 3)
    profiler.close()
    profiler.close()
    assert traced_steps(tmp_path) == [2, 3]


def test_a_run_that_resumes_among_them_traces_the_rest(tmp_path):
    train(Profiler(tmp_path, range(3, 6)), 4, 8)
    assert traced_steps(tmp_path) == [4, 5]


def test_nothing_is_traced_unless_asked_or_after_a_resume(tmp_path):
    train(Profiler(tmp_path, range(0)), 0, 3)
    train(Profiler(tmp_path, range(2, 5)), 7, 8)
    assert list(tmp_path.iterdir()) == []


def test_the_host_s_peak_is_not_below_what_was_just_used():
    before = peak_memory()['host_bytes']
    block = np.ones(40_000_000, np.uint8)
    with open('/proc/self/status') as file:
        (line,) = (text for text in file if text.startswith('VmHWM'))
    peak = peak_memory()['host_bytes']
    assert abs(peak - int(line.split()[1]) * 1024) < 8e6
    assert peak >= max(before, block.nbytes)


def test_the_device_s_peak_is_that_of_the_fullest(monkeypatch):
    class Device:
        def __init__(self, stats):
            self.stats = stats

        def memory_stats(self):
            return self.stats

    devices = [Device({'peak_bytes_in_use': n, 'bytes_in_use': 1}) for n in (5, 9, 2)]
    monkeypatch.setattr(profiling.jax, 'local_devices', lambda: [*devices, Device(None)])
    assert peak_memory()['device_bytes'] == 9.0
    monkeypatch.setattr(profiling.jax, 'local_devices', lambda: [Device({})])
    assert 'device_bytes' not in peak_memory()
