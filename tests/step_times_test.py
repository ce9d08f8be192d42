"""Slow steps are logged with their number and process."""

import logging

import numpy as np

from epa_jax import step_times
from epa_jax.step_times import LEAST, WINDOW, StepTimes, slowest


def test_an_outlier_is_logged_with_step_and_process(caplog):
    times = StepTimes()
    with caplog.at_level(logging.WARNING, logger='epa_jax'):
        found = [times.add(step, 1.0 + step % 3 / 10) for step in range(1, 20)]
        assert not any(found)
        assert caplog.records == []
        assert times.add(20, 5.0)
        assert not times.add(21, 1.3)
    (record,) = caplog.records
    assert 'step 20 took 5 s on process 0; usual are 1.1 s' in record.getMessage()
    assert (record.step, record.step_seconds) == (20, 5.0)
    assert times.outliers == 1


def test_an_outlier_that_loses_little_is_no_warning(caplog):
    times = StepTimes()
    with caplog.at_level(logging.INFO, logger='epa_jax'):
        found = [times.add(step, 0.1) for step in range(1, 20)] + [times.add(20, 0.9)]
    assert found[-1]
    (record,) = caplog.records
    assert record.levelno == logging.INFO


def test_the_first_steps_are_not_judged_and_a_new_pace_becomes_usual():
    times = StepTimes()
    pace = [1.0] * (LEAST - 1) + [9.0] + [1.0] * WINDOW + [3.0] * WINDOW
    found = [times.add(step, seconds) for step, seconds in enumerate(pace)]
    assert not any(found[: LEAST + 1])
    assert found[-WINDOW:][0]
    assert not any(found[-WINDOW // 2 :])
    assert times.usual() == 3.0


def test_one_process_is_not_compared():
    assert slowest(2.5) == (0, 2.5, 2.5)


def test_the_slowest_of_several_processes(monkeypatch):
    gathered = np.array([[1.0], [7.0], [2.0]], np.float32)
    monkeypatch.setattr(step_times.jax, 'process_count', lambda: 3)
    monkeypatch.setattr(
        step_times.multihost_utils, 'process_allgather', lambda value: gathered
    )
    assert slowest(1.0) == (1, 7.0, 2.0)
