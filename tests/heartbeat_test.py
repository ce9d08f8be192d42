"""Heartbeats are bounded in number and read back whole."""

import json

import pytest

from epa_jax.config import ConfigError
from epa_jax.heartbeat import CHANGE, EVERY, Heart, path_of, read_beat


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_beats_come_at_a_bounded_rate(tmp_path):
    clock = Clock()
    heart = Heart(tmp_path, 1000, clock)
    written = 0
    for step in range(1000):
        clock.now = step * EVERY / 20
        written += heart.beat(step, 'step')
    assert written == 1000 / 20
    beat = read_beat(path_of(tmp_path, 0))
    assert (beat.step, beat.phase, beat.total_steps) == (980, 'step', 1000)
    assert (beat.process, beat.processes) == (0, 1)
    clock.now = 980 * EVERY / 20 + CHANGE / 2
    assert not heart.beat(999, 'evaluation')
    clock.now += CHANGE
    assert not heart.beat(1000, 'step')
    assert heart.beat(1000, 'evaluation')
    assert not heart.beat(1000, 'save')
    assert heart.beat(1000, 'done', force=True)
    assert read_beat(path_of(tmp_path, 0)).phase == 'done'


def test_a_clock_that_jumps_back_stops_nothing(tmp_path, monkeypatch):
    """The time in the file is the wall clock's; the rate is not."""
    clock = Clock()
    heart = Heart(tmp_path, 5, clock)
    assert heart.beat(1, 'step')
    monkeypatch.setattr('time.time', lambda: 0.0)
    clock.now = EVERY
    assert heart.beat(2, 'step')


def test_a_folder_that_cannot_be_written_to_stops_nothing(tmp_path, caplog):
    (tmp_path / 'heartbeats').write_text('a file in its place')
    assert not Heart(tmp_path, 5).beat(1, 'step')
    assert 'no heartbeat' in caplog.text


def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    folder = tmp_path / 'heartbeats'
    folder.mkdir()
    other = folder / 'process_1.json.4.partial'  # perhaps still at it
    for path in (folder / 'process_0.json.4.partial', other):
        path.touch()
    Heart(tmp_path, 5)
    assert list(folder.iterdir()) == [other]


GOOD = {
    'step': 1,
    'total_steps': 5,
    'phase': 'step',
    'process': 0,
    'processes': 1,
    'pid': 7,
    'time': '2030-01-01T00:00:00+00:00',
}


@pytest.mark.parametrize(
    'content',
    [
        b'',
        b'\xff',
        b'[' * 100_000,
        b'[]',
        b'{"step": 1}',
        json.dumps(GOOD | {'more': 1}).encode(),
        json.dumps(GOOD | {'processes': '9'}).encode(),
        json.dumps(GOOD | {'step': True}).encode(),
        json.dumps(GOOD | {'process': 1}).encode(),
        json.dumps(GOOD | {'processes': 10**12}).encode(),
    ],
)
def test_what_is_no_heartbeat_is_refused(tmp_path, content):
    path = tmp_path / 'b.json'
    path.write_text(json.dumps(GOOD))
    assert read_beat(path).pid == 7
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r'b\.json: not a heartbeat'):
        read_beat(path)
