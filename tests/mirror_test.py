"""A run's small files: written here, found in the bucket."""

import os
import threading
import time

import aiohttp
import pytest

from epa_jax import storage
from epa_jax.mirror import Mirror
from epa_jax.storage import StorageError
from tests.gcs import get, names, put


@pytest.fixture
def failing(bucket, monkeypatch):
    """Writes fail while the event is set."""
    broken = threading.Event()
    real = storage.filesystem().pipe_file

    def pipe_file(*arguments, **options):
        if broken.is_set():
            raise aiohttp.ServerDisconnectedError('no route to host')
        return real(*arguments, **options)

    monkeypatch.setattr(storage.filesystem(), 'pipe_file', pipe_file)
    return broken


def test_only_what_changed_is_copied(bucket):
    mirror = Mirror(f'{bucket}/run', [])
    assert mirror.folder.name == 'run'
    (mirror.folder / 'a.json').write_text('one')
    (mirror.folder / 'logs').mkdir()
    (mirror.folder / 'logs/b').write_text('two')
    mirror.sync()
    assert names(f'{bucket}/run') == ['a.json', 'logs/b']
    put(f'{bucket}/run/a.json', 'another process wrote this')
    with (mirror.folder / 'logs/b').open('a') as file:
        file.write(' three')
    mirror.sync()
    assert get(f'{bucket}/run/a.json') == 'another process wrote this'
    assert get(f'{bucket}/run/logs/b') == 'two three'
    mirror.remove()


def test_what_is_being_written_stays_here(bucket):
    mirror = Mirror(f'{bucket}/run', [])
    (mirror.folder / 'a.json.12.partial').write_text('{')
    (mirror.folder / '.hidden').mkdir()
    (mirror.folder / '.hidden/b').write_text('x')
    (mirror.folder / 'done').write_text('x')
    mirror.sync()
    assert names(f'{bucket}/run') == ['done']
    mirror.remove()


def test_a_start_reads_what_earlier_ones_wrote_and_does_not_write_it_again(bucket):
    put(f'{bucket}/run/config.json', '{}')
    put(f'{bucket}/run/large', 'x')
    mirror = Mirror(f'{bucket}/run', ['config.json', 'metrics.jsonl'])
    assert os.listdir(mirror.folder) == ['config.json']
    assert (mirror.folder / 'config.json').read_text() == '{}'
    put(f'{bucket}/run/config.json', '{"new": 1}')
    mirror.sync()
    assert get(f'{bucket}/run/config.json') == '{"new": 1}'
    mirror.remove()


def test_files_get_there_in_the_background_and_at_the_end(bucket):
    mirror = Mirror(f'{bucket}/run', [])
    end = time.monotonic() + 60
    with mirror.copying(seconds=0.05):
        (mirror.folder / 'a').write_text('x')
        while names(f'{bucket}/run') != ['a']:
            assert time.monotonic() < end
        (mirror.folder / 'b').write_text('x')
    assert names(f'{bucket}/run') == ['a', 'b']
    assert not mirror.folder.exists()


def test_files_get_there_when_the_run_fails(bucket):
    mirror = Mirror(f'{bucket}/run', [])

    def stopped():
        with mirror.copying():
            (mirror.folder / 'a').write_text('x')
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert names(f'{bucket}/run') == ['a']
    assert not mirror.folder.exists()


def test_a_bucket_that_cannot_be_written_for_a_while_is_tried_again(
    bucket, failing, caplog
):
    mirror = Mirror(f'{bucket}/run', [])
    (mirror.folder / 'a').write_text('x')
    failing.set()
    mirror.try_sync()
    assert 'no route to host' in caplog.text
    assert names(f'{bucket}/run') == []
    failing.clear()
    mirror.try_sync()
    assert names(f'{bucket}/run') == ['a']
    mirror.remove()


def test_at_the_end_it_is_an_error_that_names_what_is_left(bucket, failing):
    mirror = Mirror(f'{bucket}/run', [])

    def run():
        with mirror.copying():
            (mirror.folder / 'a').write_text('x')
            failing.set()

    with pytest.raises(StorageError, match='is in ') as caught:
        run()
    assert str(mirror.folder) in str(caught.value)
    assert (mirror.folder / 'a').read_text() == 'x'
    mirror.remove()


def test_it_hides_no_other_error(bucket, failing, caplog):
    mirror = Mirror(f'{bucket}/run', [])

    def preempted():
        with mirror.copying():
            (mirror.folder / 'a').write_text('x')
            failing.set()
            raise SystemExit(75)

    with pytest.raises(SystemExit) as caught:
        preempted()
    assert caught.value.code == 75
    assert 'no route to host; check' in caplog.text
    assert f'What the run wrote last is in {mirror.folder}' in caplog.text
    mirror.remove()


def test_a_bucket_that_cannot_be_read_is_refused(bucket, monkeypatch):
    def cat_file(*arguments, **options):
        raise PermissionError('forbidden')

    monkeypatch.setattr(storage.filesystem(), 'cat_file', cat_file)
    with pytest.raises(StorageError, match=r'forbidden.*gcloud auth'):
        Mirror(f'{bucket}/run', ['config.json'])
