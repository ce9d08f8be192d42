"""A run shows signs of life, and may be stopped, before its first step."""

import os
import signal

import pytest

from epa_jax import train as train_lib
from epa_jax.attendance import Guards
from epa_jax.data.sources import DataError
from epa_jax.heartbeat import path_of, read_beat
from epa_jax.interrupt import RUN_AGAIN, Interrupted, Interrupts
from epa_jax.monitor import Monitor
from epa_jax.train import train
from epa_jax.watchdog import Watchdog
from tests import small_run
from tests.processes import command

KEYS = {'steps': 3, 'export': False}


@pytest.fixture
def folder(tmp_path):
    small_run.write(tmp_path, spec=command.SPEC)
    return tmp_path


def test_the_heart_beats_in_the_pass_and_a_notice_ends_it(folder, monkeypatch):
    run = small_run.config(folder, **KEYS)
    beats, alive = [], Guards.alive

    def alive_then_notice(guards):
        alive(guards)
        beats.append(read_beat(path_of(folder / 'run', 0)))
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Guards, 'alive', alive_then_notice)
        with pytest.raises(Interrupted, match='outside of training') as info:
            train(run)
    assert info.value.code == RUN_AGAIN
    assert [(beat.phase, beat.total_steps) for beat in beats] == [('other', 3)]
    assert read_beat(path_of(folder / 'run', 0)).phase == 'stopped'
    assert train(run).summary['steps'] == 3


def test_a_run_that_starts_again_says_so_while_it_reads(folder, monkeypatch):
    run = small_run.config(folder, **KEYS)
    train(run)
    assert read_beat(path_of(folder / 'run', 0)).phase == 'done'

    beats = []

    def fail(*args, **keys):
        beats.extend(read_beat(p) for p in folder.glob('*/heartbeats/*.json'))
        raise DataError('bad')

    monkeypatch.setattr(train_lib, 'load_datasets', fail)
    with pytest.raises(DataError):
        train(run)
    assert [(beat.phase, beat.total_steps) for beat in beats] == [('other', 0)]
    assert read_beat(path_of(folder / 'run', 0)).phase == 'failed'
    with pytest.raises(DataError):
        train(small_run.config(folder, 'new', **KEYS))
    assert not (folder / 'new').exists()  # nothing of a run that is refused


def test_the_watchdog_hears_of_every_batch_and_a_notice_is_heeded():
    beats = []
    watchdog = Watchdog(0)
    watchdog.beat = lambda: beats.append(1)
    interrupts = Interrupts()
    guards = Guards(interrupts, Monitor(), watchdog)
    guards.alive()
    interrupts.asked = lambda: True
    with pytest.raises(Interrupted, match='outside of training'):
        guards.alive()
    assert len(beats) == 2
