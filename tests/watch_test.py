"""A run is alive, done, stale or failed by its heartbeats."""

import dataclasses
import os
import subprocess
import sys

import pytest

from epa_jax import heartbeat, run_folder
from epa_jax.config import ConfigError
from epa_jax.heartbeat import Beat
from epa_jax.watch import ALIVE, FAILED, STALE, Watcher, watch

START = 1_000_000.0  # of the files


class Clocks:
    """The watcher's clock, and the wall clock, which may jump."""

    def __init__(self):
        self.now, self.wall = 50.0, START

    def run(self, seconds):
        self.now += seconds
        self.wall += seconds


def beat(folder, clocks, step=1, phase='step', process=0, processes=1):
    found = Beat(step, 9, phase, process, processes, 4, '2030-01-01T00:00:00+00:00')
    path = heartbeat.path_of(folder, process)
    path.parent.mkdir(exist_ok=True)
    run_folder.write_json(path, dataclasses.asdict(found))
    os.utime(path, (clocks.wall, clocks.wall))


def watcher_of(folder, clocks):
    return Watcher(folder, 60, lambda: clocks.now, lambda: clocks.wall)


def test_a_run_that_moves_then_hangs(tmp_path):
    clocks = Clocks()
    watcher = watcher_of(tmp_path, clocks)
    for step in range(3):
        beat(tmp_path, clocks, step)
        line = f'process 0: step {step}/9, step, 2030-01-01T00:00:00+00:00'
        assert watcher.look() == (ALIVE, [line])
        clocks.run(50)
        assert watcher.look() == (ALIVE, [])
    clocks.run(10)
    assert watcher.look() == (STALE, [])
    assert not watcher.finished()


def test_clock_jumps_make_nothing_stale(tmp_path):
    clocks = Clocks()
    watcher = watcher_of(tmp_path, clocks)
    beat(tmp_path, clocks)
    assert watcher.look()[0] == ALIVE
    clocks.wall += 1e6
    assert watcher.look()[0] == ALIVE
    clocks.wall -= 3e6
    beat(tmp_path, clocks, 2)
    assert watcher.look()[0] == ALIVE


def test_the_first_look_goes_by_the_file(tmp_path):
    clocks = Clocks()
    beat(tmp_path, clocks)
    clocks.run(61)
    assert watcher_of(tmp_path, clocks).look()[0] == STALE


def test_every_process_counts(tmp_path):
    clocks = Clocks()
    watcher = watcher_of(tmp_path, clocks)
    os.utime(tmp_path, (START, START))
    beat(tmp_path, clocks, processes=2)
    os.utime(tmp_path, (START, START))
    status, lines = watcher.look()
    assert (status, lines[1]) == (ALIVE, 'process 1: no heartbeat yet')
    clocks.run(61)
    beat(tmp_path, clocks, 2, processes=2)
    assert watcher.look()[0] == STALE  # process 1 never came
    beat(tmp_path, clocks, 2, process=1, processes=2)
    assert watcher.look()[0] == ALIVE
    beat(tmp_path, clocks, 3, 'failed', process=1, processes=2)
    assert watcher.look()[0] == FAILED


def test_watching_ends_with_the_run(tmp_path, capsys, monkeypatch):
    clocks = Clocks()
    beat(tmp_path, clocks)
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        clocks.run(seconds)
        beat(tmp_path, clocks, len(slept) + 1, 'done' if len(slept) == 3 else 'step')

    monkeypatch.setattr('time.sleep', sleep)
    assert watch(watcher_of(tmp_path, clocks), 5, once=False) == ALIVE
    assert slept == [5, 5, 5]
    assert capsys.readouterr().out.count('\n') == 4
    clocks.run(1e4)  # done is done
    assert watch(watcher_of(tmp_path, clocks), 5, once=True) == ALIVE


def test_a_damaged_heartbeat(tmp_path):
    clocks = Clocks()
    beat(tmp_path, clocks)
    heartbeat.path_of(tmp_path, 0).write_bytes(b'{')
    with pytest.raises(ConfigError, match='not a heartbeat'):
        watcher_of(tmp_path, clocks).look()


def test_the_command(tmp_path, repo_root):
    def status(*args):
        command = [sys.executable, '-m', 'epa_jax.watch', *args, '--once']
        done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    code, text = status(str(tmp_path / 'gone'))
    assert (code, 'no such run folder' in text) == (2, True)
    code, text = status('gs://bucket/run')
    assert (code, 'must be a local path' in text) == (2, True)
    clocks = Clocks()
    beat(tmp_path, clocks)
    code, text = status(str(tmp_path))
    assert (code, text.startswith('process 0: step 1/9, step')) == (1, True)
    beat(tmp_path, clocks, 9, 'done')
    assert status(str(tmp_path))[0] == 0
