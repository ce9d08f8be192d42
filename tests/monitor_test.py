"""What a whole run leaves behind about itself."""

import json
import logging

import jax
import numpy as np
import pytest

from epa_jax import monitor as monitor_lib
from epa_jax.goodput import PHASES
from epa_jax.heartbeat import path_of, read_beat
from epa_jax.loop import Loop, TrainingError
from epa_jax.monitor import Monitor
from epa_jax.train import train
from tests import small_run
from tests.profiling_test import traced_steps

EXTRA = {'goodput', 'memory/peak_host_bytes'}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs')
    small_run.write(folder)
    return folder


@pytest.fixture(scope='module')
def result(folder):
    changes = {'log__profile_steps': '3:4', 'log__eval_every': 5, 'log__every': 2}
    own = logging.getLogger('epa_jax')
    before = own.level
    own.setLevel(logging.INFO)
    try:
        return train(
            small_run.config(folder, 'watched', steps=6, checkpoint__every=3, **changes)
        )
    finally:
        own.setLevel(before)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_goodput_and_memory_are_in_the_metrics_and_the_summary(result):
    steps = [line for line in lines(result.folder / 'metrics.jsonl') if 'loss' in line]
    assert [line['step'] for line in steps] == [2, 4, 6]
    for line in steps:
        assert set(line) >= EXTRA
        assert 0 < line['goodput'] < 1
        assert line['memory/peak_host_bytes'] > 1e7
    summary = json.loads((result.folder / 'summary.json').read_text())
    seconds = summary['phase_seconds']
    assert set(seconds) == set(PHASES)
    assert all(seconds[name] > 0 for name in set(PHASES) - {'restore', 'input'})
    assert seconds['restore'] == 0
    assert summary['seconds'] == pytest.approx(sum(seconds.values()))
    assert summary['goodput'] == pytest.approx(seconds['step'] / summary['seconds'])
    # the first step compiles, and is nearly all of the loop's time but not of goodput
    assert seconds['compile'] > 0.1 * summary['first_step_seconds']
    assert seconds['step'] < summary['seconds'] - seconds['compile']
    assert summary['peak_memory']['host_bytes'] >= steps[-1]['memory/peak_host_bytes']
    assert not set(summary['train']) & EXTRA  # which say nothing about training


def test_the_run_was_alive_and_is_done(result):
    beat = read_beat(path_of(result.folder, 0))
    assert (beat.step, beat.total_steps, beat.phase) == (6, 6, 'done')


def test_the_log_is_in_the_run_folder(result):
    found = lines(result.folder / 'logs' / 'process_0.jsonl')
    assert any(line['message'].startswith('step 5: eval/loss') for line in found)


def test_the_steps_asked_for_were_traced(result):
    assert traced_steps(result.folder / 'profile') == [3, 4]


def test_a_resumed_run_counts_the_restore(folder, result):
    again = train(
        small_run.config(folder, 'watched', steps=6, log__profile_steps='', log__every=2)
    )
    assert again.summary['phase_seconds']['restore'] > 0
    assert again.summary['phase_seconds']['step'] < 1


@pytest.mark.parametrize(
    ('error', 'phase'), [(TrainingError('bad'), 'failed'), (SystemExit('bad'), 'stopped')]
)
def test_a_run_that_ends_early_says_so(folder, monkeypatch, error, phase):
    def fail(self, data):
        raise error

    monkeypatch.setattr(Loop, '_update', fail)
    name = type(error).__name__
    with pytest.raises(type(error)):
        train(small_run.config(folder, name, export=False))
    assert read_beat(path_of(folder / name, 0)).phase == phase
    last = lines(folder / name / 'logs' / 'process_0.jsonl')[-1]
    assert last['message'] == f'{name}: bad'


def test_a_run_that_lost_a_process_has_not_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, 'process_count', lambda: 2)
    with pytest.raises(jax.errors.JaxRuntimeError), Monitor().writing(tmp_path):
        raise jax.errors.JaxRuntimeError('UNAVAILABLE: task 1 is gone')
    assert read_beat(path_of(tmp_path, 0)).phase == 'stopped'


def test_traces_beyond_the_end_are_announced(tmp_path, caplog):
    monitor = Monitor()
    with monitor.writing(tmp_path, range(6, 9)):
        monitor.expect(5)
        assert 'the run ends before, at step 5' in caplog.text


def test_a_slow_step_is_an_outlier_unless_it_compiled():
    compiled = [0.0]
    monitor = Monitor(lambda: compiled[0])
    for step in range(1, 20):
        monitor.done(step, 0.1)
    monitor.ledger._mark -= 9  # nine seconds pass, all of them compiling
    compiled[0] = 9.0
    monitor.done(20, 9.1)
    assert monitor.times.outliers == 0
    monitor.done(21, 9.1)
    assert monitor.times.outliers == 1


class Leaf:
    def __init__(self, ready):
        self.ready = ready

    def is_ready(self):
        return self.ready


def test_waiting_counts_only_when_the_devices_are_idle():
    for metrics, phase in (
        (None, 'input'),
        ({'a': Leaf(True), 'b': Leaf(False)}, 'step'),
        ({'a': Leaf(True), 'b': Leaf(True)}, 'input'),
    ):
        monitor = Monitor()
        with monitor.waiting(metrics):
            monitor.ledger._mark -= 100
        assert monitor.ledger.seconds[phase] == pytest.approx(100, abs=5), phase


def test_the_process_that_keeps_others_waiting_is_named(monkeypatch, caplog):
    asked = []

    def slowest(waited):
        asked.append(waited)
        return 3, 80.0, 1.0

    monkeypatch.setattr(monitor_lib, 'slowest', slowest)
    monitor = Monitor()
    for _ in range(2):
        with monitor.waiting(None):
            monitor.ledger._mark -= 100
        monitor.compare_processes()
    assert np.allclose(asked, 100, atol=5)  # since the comparison before
    assert 'process 3 kept the others waiting: 80 s' in caplog.text
