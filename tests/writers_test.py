import json
import math
import struct
import sys
import types

import pytest
from tensorboardX.proto import event_pb2

from epa_jax.config import ConfigError
from epa_jax.schema import LogConfig
from epa_jax.writers import JsonlWriter, TensorBoardWriter, open_writers


def read_lines(path):
    def refuse(token):
        raise ValueError(f'not JSON: {token}')

    lines = path.read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def read_events(folder):
    """Events of a TensorBoard folder: records of length, checksum, bytes, checksum."""
    events = []
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from('<Q', data, at)
            events.append(event_pb2.Event.FromString(data[at + 12 : at + 12 + length]))
            at += 16 + length
    return events


def test_jsonl_lines_are_strict_json_at_once(tmp_path):
    writer = JsonlWriter(tmp_path / 'metrics.jsonl')
    writer.write(1, {'loss': 0.5, 'rewards/chosen': math.nan, 'grad_norm': math.inf})
    expected = {'step': 1, 'loss': 0.5, 'rewards/chosen': None, 'grad_norm': None}
    assert read_lines(tmp_path / 'metrics.jsonl') == [expected]
    writer.close()


@pytest.mark.parametrize(
    ('restored_step', 'kept'),
    [(None, []), (0, [0]), (2, [0, 1, 2, 2]), (9, [0, 1, 2, 2, 3])],
)
def test_jsonl_resumes_from_the_restored_step(tmp_path, restored_step, kept):
    path = tmp_path / 'metrics.jsonl'
    first = JsonlWriter(path)
    for step in (0, 1, 2, 2, 3):
        first.write(step, {'loss': 1.0})
    first.close()
    with path.open('a') as file:
        file.write('{"step": 4, "lo')  # killed while writing
    second = JsonlWriter(path, restored_step)
    assert second.dropped == 6 - len(kept)
    second.write(10, {'loss': 2.0})
    second.close()
    assert [line['step'] for line in read_lines(path)] == [*kept, 10]


def test_jsonl_an_evaluation_that_is_owed_is_not_there_twice(tmp_path):
    """Written by a start that was killed before the next save."""
    path = tmp_path / 'metrics.jsonl'
    for owed, kept in ((False, [1, 2, 2]), (True, [1, 2])):
        first = JsonlWriter(path)
        for step, name in ((1, 'eval/loss'), (2, 'loss'), (2, 'eval/loss'), (3, 'loss')):
            first.write(step, {name: 1.0})
        first.close()
        JsonlWriter(path, 2, owed).close()
        assert [line['step'] for line in read_lines(path)] == kept
    assert 'loss' in read_lines(path)[-1]


def test_jsonl_torn_line_that_looks_whole_is_dropped(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    path.write_text('{"step": 1, "loss": 0.25}\n{"step": 2, "loss": 0.25}')
    writer = JsonlWriter(path, 5)
    assert writer.dropped == 1
    writer.close()
    assert [line['step'] for line in read_lines(path)] == [1]


def test_tensorboard_has_every_scalar(tmp_path):
    writer = TensorBoardWriter(tmp_path)
    writer.write(3, {'loss': 0.5, 'eval/loss': 0.25})
    writer.close()
    scalars = {
        (value.tag, event.step): value.simple_value
        for event in read_events(tmp_path)
        for value in event.summary.value
    }
    assert scalars == {('loss', 3): 0.5, ('eval/loss', 3): 0.25}


def test_tensorboard_hides_what_is_written_again(tmp_path):
    writer = TensorBoardWriter(tmp_path, restored_step=7)
    writer.close()
    session = event_pb2.SessionLog.SessionStatus.Value('START')
    starts = [e for e in read_events(tmp_path) if e.session_log.status == session]
    assert [event.step for event in starts] == [8]


def test_only_the_writers_asked_for(tmp_path):
    log = LogConfig(tensorboard=False)
    writers = open_writers(tmp_path, log, config={}, restored_step=None)
    writers.write(1, {'loss': 1.0})
    writers.close()
    assert [p.name for p in tmp_path.iterdir()] == ['metrics.jsonl']
    writers = open_writers(tmp_path, LogConfig(), config={}, restored_step=1)
    writers.write(2, {'loss': 1.0})
    writers.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ['metrics.jsonl', 'tensorboard']
    assert [line['step'] for line in read_lines(tmp_path / 'metrics.jsonl')] == [1, 2]


def test_wandb_missing_is_an_error_before_anything_is_touched(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    with pytest.raises(ConfigError, match=r"log\.wandb='mine' needs wandb: pip"):
        open_writers(tmp_path, LogConfig(wandb='mine'), config={}, restored_step=None)
    assert list(tmp_path.iterdir()) == []


def test_wandb_continues_the_same_run(tmp_path, monkeypatch):
    started, logged = [], []

    class Run:
        def log(self, metrics, step):
            logged.append((step, metrics))

        def finish(self):
            logged.append('finished')

    def init(**keys):
        started.append(keys)
        return Run()

    monkeypatch.setitem(sys.modules, 'wandb', types.SimpleNamespace(init=init))
    log = LogConfig(wandb='mine', tensorboard=False)
    for step in (1, 2):
        writers = open_writers(tmp_path, log, config={'seed': 0}, restored_step=step - 1)
        writers.write(step, {'loss': 0.5})
        writers.close()
    assert logged == [(1, {'loss': 0.5}), 'finished', (2, {'loss': 0.5}), 'finished']
    assert [s['project'] for s in started] == ['mine', 'mine']
    assert started[0]['config'] == {'seed': 0}
    assert started[0]['id'] == started[1]['id']
