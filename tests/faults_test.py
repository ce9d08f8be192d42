"""What may happen to a run's files and machine: a clear message, and a way to go on."""

import errno
import itertools
import os
import resource
import shutil
import time

import jax
import numpy as np
import pytest

from epa_jax import train as train_lib
from epa_jax.checkpoints import CheckpointError
from epa_jax.config import ConfigError
from epa_jax.data.sources import DataError
from epa_jax.formats.names import FormatError
from epa_jax.train import train
from tests import small_run
from tests.processes import command

KEYS = {
    'steps': 6,
    'checkpoint__every': 2,
    'checkpoint__keep_last': 3,
    'export': False,
    'data__eval_examples': 0,
}


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp('faults')
    small_run.write(folder, spec=command.SPEC)
    return folder


@pytest.fixture(scope='module')
def whole(files):
    """The run that nothing happens to."""
    return train(small_run.config(files, 'whole', **KEYS))


@pytest.fixture
def cut(files, whole, tmp_path):
    """A folder with the same model and data, and the run after step 4."""
    for name in ('model', 'cache'):
        shutil.copytree(files / name, tmp_path / name)
    shutil.copy(files / 'pairs.jsonl', tmp_path)
    shutil.copytree(whole.folder, tmp_path / 'run')
    shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '6')
    (tmp_path / 'run' / 'config.json').unlink()  # it names the files' other places
    return tmp_path


def size(path):
    return path.stat().st_size


def saved(folder):
    return sorted(p.name for p in (folder / 'run' / 'checkpoints').iterdir())


def assert_same(result, expected):
    jax.tree.map(np.testing.assert_array_equal, result.params, expected.params)


# what Orbax had still to write comes back after its event loop is closed
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_disk_that_fills_at_a_save_is_told_and_the_run_goes_on(cut, whole):
    """The limit on the size of a file stands for the end of the disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoints = cut / 'run' / 'checkpoints'
    largest = max(size(p) for p in checkpoints.rglob('*') if p.is_file())
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest // 2, before[1]))
    try:
        with pytest.raises(
            CheckpointError, match=r'checkpoints: cannot be written .*make room'
        ):
            train(small_run.config(cut, **KEYS))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_same(train(small_run.config(cut, **KEYS)), whole)
    assert saved(cut) == ['2', '4', '6']


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_file_that_cannot_be_written_is_one_message(monkeypatch, number):
    def full(main, **keywords):
        raise OSError(number, os.strerror(number), 'runs/x/metrics.jsonl')

    monkeypatch.setattr('sys.argv', ['train'])
    monkeypatch.setattr(train_lib.app, 'run', full)
    with pytest.raises(SystemExit, match=f'runs/x/metrics.jsonl: {os.strerror(number)}'):
        train_lib.run_main()


def test_other_errors_of_the_system_keep_their_traceback(monkeypatch):
    def bug(main, **keywords):
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr('sys.argv', ['train'])
    monkeypatch.setattr(train_lib.app, 'run', bug)
    with pytest.raises(OSError, match='Bad file descriptor'):
        train_lib.run_main()


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_serves(cut, whole):
    newest = cut / 'run' / 'checkpoints' / '4'
    data = max((p for p in newest.rglob('*') if p.is_file()), key=size)
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(
        CheckpointError, match=r'checkpoints/4: cannot be read .* delete this'
    ):
        train(small_run.config(cut, **KEYS))
    shutil.rmtree(newest)
    assert_same(train(small_run.config(cut, **KEYS)), whole)


def test_a_truncated_model_is_refused(cut):
    shard = cut / 'model' / 'model.safetensors'
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(FormatError, match=r'model\.safetensors'):
        train(small_run.config(cut, **KEYS))


def test_data_that_vanished_is_named(cut):
    (cut / 'pairs.jsonl').unlink()
    with pytest.raises(DataError, match=r'pairs\.jsonl: no such file'):
        train(small_run.config(cut, **KEYS))


def test_data_that_changed_is_refused(cut):
    lines = (cut / 'pairs.jsonl').read_text().splitlines()
    (cut / 'pairs.jsonl').write_text('\n'.join(lines[::-1]))
    with pytest.raises(ConfigError, match='the run began with other data'):
        train(small_run.config(cut, **KEYS))


@pytest.mark.parametrize('days', [[0, -1], [0, 1, -1]], ids=str)
def test_a_clock_that_jumps_changes_nothing(cut, whole, monkeypatch, days):
    """By so many days at every look, in turn."""
    looks, now = itertools.count(), time.time()

    def clock():
        return now + 86400.0 * days[next(looks) % len(days)]

    monkeypatch.setattr(time, 'time', clock)
    monkeypatch.setattr(time, 'time_ns', lambda: int(1e9 * clock()))
    ended = train(small_run.config(cut, **KEYS))
    assert next(looks) > 10
    assert_same(ended, whole)
    assert 0 <= ended.summary['seconds'] < 3600
    assert saved(cut) == ['2', '4', '6']
