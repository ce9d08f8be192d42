import errno
import logging
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from epa_jax.config import ConfigError
from epa_jax.run_lock import locked

HOLDS = """
import sys, time
from epa_jax.run_lock import locked
with locked(sys.argv[1]):
    print('locked', flush=True)
    time.sleep(600)
"""


def test_a_second_run_is_refused_and_told_who_is_there(tmp_path):
    workdir = str(tmp_path / 'run')
    with (
        locked(workdir),
        pytest.raises(ConfigError, match=f'another run is in it .process {os.getpid()} on'),
        locked(workdir),
    ):
        pass


def test_the_kernel_lets_go_of_a_killed_run(tmp_path):
    workdir = str(tmp_path / 'run')
    command = [sys.executable, '-c', HOLDS, workdir]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == 'locked\n'
        with pytest.raises(ConfigError, match=f'process {process.pid} on'), locked(workdir):
            pass
        process.send_signal(signal.SIGKILL)
    with locked(workdir):
        pass


@pytest.mark.parametrize('content', [b'', b'[]', b'\xff', b'[' * 10**5, b'{"process": 1}'])
def test_whatever_stands_in_the_lock_the_second_is_refused(tmp_path, content):
    workdir = tmp_path / 'run'
    with locked(str(workdir)):
        (workdir / 'lock').write_bytes(content)
        refused = pytest.raises(ConfigError, match=r'run is in it .which has just begun')
        with refused, locked(str(workdir)):
            pass


def test_what_was_made_for_the_lock_alone_is_removed(tmp_path):
    with locked(str(tmp_path / 'a' / 'run')):
        pass
    assert list(tmp_path.iterdir()) == []
    (tmp_path / 'mine').mkdir()
    with locked(str(tmp_path / 'mine')):
        pass
    with locked(str(tmp_path / 'mine' / 'run')):
        (tmp_path / 'mine' / 'run' / 'config.json').touch()
    assert (tmp_path / 'mine' / 'run' / 'config.json').exists()


def test_a_lock_that_was_removed_meanwhile_counts_for_nothing(tmp_path, monkeypatch):
    """Its holder left between our opening the file and our locking it."""
    import fcntl

    flock, path = fcntl.flock, tmp_path / 'run' / 'lock'

    def remove_first(file, operation):
        monkeypatch.setattr(fcntl, 'flock', flock)
        path.unlink()
        flock(file, operation)

    monkeypatch.setattr(fcntl, 'flock', remove_first)
    refused = pytest.raises(ConfigError, match='another run')
    with locked(str(tmp_path / 'run')), refused, locked(str(tmp_path / 'run')):
        pass


@pytest.mark.parametrize('number', [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path, monkeypatch, number):
    def refuse(*args, **keys):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(pathlib.Path, 'mkdir', refuse)
    message = f'cannot be written: {os.strerror(number)}'
    with pytest.raises(ConfigError, match=message), locked(str(tmp_path / 'run')):
        pass


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / 'file').touch()
    workdir = str(tmp_path / 'file' / 'run')
    with pytest.raises(ConfigError, match='cannot be written'), locked(workdir):
        pass


def test_where_there_are_no_locks_the_log_says_so(tmp_path, monkeypatch, caplog):
    import fcntl

    def refuse(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with caplog.at_level(logging.WARNING), locked('gs://bucket/run'):
        assert 'no lock on object stores' in caplog.text
    monkeypatch.setattr(fcntl, 'flock', refuse)
    with caplog.at_level(logging.WARNING), locked(str(tmp_path / 'run')):
        assert 'cannot be locked' in caplog.text


def test_all_processes_end_where_the_first_is_refused(tmp_path, monkeypatch):
    from epa_jax import run_lock

    monkeypatch.setattr(run_lock.jax, 'process_index', lambda: 1)
    monkeypatch.setattr(run_lock, '_of_first', lambda value: True)
    refused = pytest.raises(ConfigError, match='refused by the first process')
    with refused, locked(str(tmp_path / 'run')):
        pass
