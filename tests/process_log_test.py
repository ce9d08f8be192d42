"""Logs of processes are JSON lines that hold what was logged, and what ended the run."""

import json
import logging

import pytest

from epa_jax.process_log import JsonFormatter, process_log


def lines(folder, process=0):
    path = folder / 'logs' / f'process_{process}.jsonl'
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def log():
    log = logging.getLogger('epa_jax.somewhere')
    log.setLevel(logging.INFO)
    yield log
    log.setLevel(logging.NOTSET)


def test_records_are_objects_with_their_extras(tmp_path, log):
    with process_log(tmp_path):
        log.info('step %d of %s', 3, 'a\nb', extra={'step': 3, 'path': tmp_path})
        log.warning('late')
    log.warning('after the run')
    first, second = lines(tmp_path)
    assert first['message'] == 'step 3 of a\nb'
    assert (first['level'], first['logger']) == ('INFO', 'epa_jax.somewhere')
    assert (first['process'], first['step'], first['path']) == (0, 3, str(tmp_path))
    assert first['time'].endswith('+00:00')
    assert second['message'] == 'late'


def test_a_line_holds_what_no_file_could():
    record = logging.makeLogRecord({'msg': 'half \ud800 of %s', 'args': ('a\npair',)})
    line = JsonFormatter().format(record)
    assert line.isascii()
    assert '\n' not in line
    assert json.loads(line)['message'] == 'half \ud800 of a\npair'


def test_a_resumed_run_adds_to_its_log(tmp_path, log):
    for word in ('one', 'two'):
        with process_log(tmp_path):
            log.info(word)
    assert [line['message'] for line in lines(tmp_path)] == ['one', 'two']


@pytest.mark.parametrize(
    ('error', 'level'), [(ValueError('bad'), 'ERROR'), (KeyboardInterrupt(), 'WARNING')]
)
def test_what_ends_a_run_is_in_its_log_and_nowhere_else(tmp_path, caplog, error, level):
    with pytest.raises(type(error)), process_log(tmp_path):
        raise error
    (line,) = lines(tmp_path)
    assert line['level'] == level
    assert line['message'].startswith(type(error).__name__)
    assert 'Traceback' in line['exception']
    assert caplog.records == []


def test_every_process_has_its_own(tmp_path, monkeypatch, log):
    monkeypatch.setattr('jax.process_index', lambda: 3)
    with process_log(tmp_path):
        log.info('here')
    assert lines(tmp_path, 3)[0]['process'] == 3
