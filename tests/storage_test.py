"""Places in buckets, against an emulator that gcsfs takes for Google's storage."""

import argparse
import json
import pathlib
import sys

import pytest

from epa_jax import compare, evaluate, export, frontier, sample, storage
from epa_jax.policy import base_model
from epa_jax.storage import StorageError
from tests.gcs import BUCKET, get, names, put


@pytest.mark.parametrize(
    ('place', 'remote'),
    [('runs/a', False), ('/a:b/c', False), ('gs://b/c', True), ('s3://b/c', True)],
)
def test_urls_are_told_from_paths(place, remote):
    assert storage.is_remote(place) == remote


@pytest.mark.parametrize('place', ['runs/first', '/tmp/x', 'gs://bucket/a/b', 'gs://b/a/'])
def test_good_places_are_returned(place):
    assert storage.check(place) == place


@pytest.mark.parametrize(
    ('place', 'wrong'),
    [
        ('s3://bucket/a', 'only local paths and gs://'),
        ('https://host/a', 'only local paths and gs://'),
        ('GS://bucket/a', 'only local paths and gs://'),
        ('gs://bucket', 'expected gs://BUCKET/PATH'),
        ('gs://bucket/', 'expected gs://BUCKET/PATH'),
        ('gs:///a', 'expected gs://BUCKET/PATH'),
        ('gs://bucket/a/../b', 'not names in a bucket'),
        ('gs://bucket/a//b', 'not names in a bucket'),
    ],
)
def test_bad_places_are_refused(place, wrong):
    with pytest.raises(StorageError, match=wrong):
        storage.check(place)


def test_what_needs_a_local_path_says_how_to_get_one():
    assert storage.local_only('runs/a') == pathlib.Path('runs/a')
    with pytest.raises(StorageError, match=r'gcloud storage cp --recursive gs://b/c \.'):
        storage.local_only('gs://b/c')
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument('run', type=storage.argument)
    with pytest.raises(argparse.ArgumentError, match='must be a local path here'):
        parser.parse_args(['gs://b/c'])


def test_local_paths_stay_as_they_are(tmp_path):
    assert storage.path('a/b') == pathlib.Path('a/b')
    assert storage.local(tmp_path) == tmp_path


def test_a_missing_gcsfs_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'gcsfs', None)
    imported = sys.modules['fsspec.registry']._registry
    for name in ('gs', 'gcs'):
        monkeypatch.delitem(imported, name, raising=False)
    with pytest.raises(StorageError, match=r'gs:// needs gcsfs: pip install .*\[gcs\]'):
        storage.path('gs://b/c')


def test_paths_in_a_bucket_read_and_write(bucket):
    path = storage.path(f'{bucket}/a')
    assert not (path / 'x').exists()
    put(f'{bucket}/a/x', 'text')
    assert (path / 'x').exists()
    assert path.is_dir()
    assert (path / 'x').read_text() == 'text'
    assert str(path / 'x') == f'{bucket}/a/x'


def test_a_file_is_copied_once_while_it_is_the_same(bucket, monkeypatch):
    put(f'{bucket}/data.jsonl', 'first')
    put(f'{bucket}/data.jsonl.gz', 'of another name')
    copy = storage.local(f'{bucket}/data.jsonl')
    assert copy.name == 'data.jsonl'
    assert copy.read_text() == 'first'
    calls = []
    real = storage.filesystem().get_file
    monkeypatch.setattr(
        storage.filesystem(), 'get_file', lambda *a, **k: calls.append(a) or real(*a, **k)
    )
    assert storage.local(f'{bucket}/data.jsonl') == copy
    assert calls == []
    put(f'{bucket}/data.jsonl', 'other')  # of the same size
    again = storage.local(f'{bucket}/data.jsonl')
    assert again.read_text() == 'other'
    assert len(calls) == 1
    assert copy.read_text() == 'first'  # which another run may be reading


def test_a_folder_is_copied_as_it_is(bucket):
    for name, text in {'config.json': '{}', 'sub/a.bin': 'a', 'sub/b.bin': ''}.items():
        put(f'{bucket}/model/{name}', text)
    put(f'{bucket}/model2/other', 'x')
    put(f'{bucket}/model/empty/', '')  # as consoles make folders
    copy = storage.local(f'{bucket}/model/')
    found = {
        str(p.relative_to(copy)): p.read_text() for p in copy.rglob('*') if p.is_file()
    }
    assert found == {'config.json': '{}', 'sub/a.bin': 'a', 'sub/b.bin': ''}


def test_copies_stay_in_their_folder(bucket, tmp_path):
    put(f'{bucket}/model/a', 'a')
    put(f'{bucket}/model/../../../outside', 'x')
    with pytest.raises(StorageError, match='not a name that is copied'):
        storage.local(f'{bucket}/model')
    assert not list(tmp_path.rglob('outside'))


def test_a_copy_that_breaks_off_leaves_none(bucket, tmp_path, monkeypatch):
    put(f'{bucket}/model/a', 'a')
    put(f'{bucket}/model/b', 'bb')
    real = storage.filesystem().get_file

    def cut(source, target, **options):
        real(source, target, **options)
        if source.endswith('b'):
            pathlib.Path(target).write_text('b')

    with monkeypatch.context() as patch:
        patch.setattr(storage.filesystem(), 'get_file', cut)
        with pytest.raises(StorageError, match='changed while it was copied'):
            storage.local(f'{bucket}/model')
    assert [p for p in (tmp_path / 'copies').rglob('*') if p.is_file()] == []
    assert (storage.local(f'{bucket}/model') / 'b').read_text() == 'bb'


@pytest.mark.parametrize('name', ['nothing', 'nothing/here'])
def test_nothing_there_is_named(bucket, name):
    with pytest.raises(StorageError, match=f'{bucket}/{name}: no such file or folder'):
        storage.local(f'{bucket}/{name}')


def test_a_bucket_that_is_not_there_is_named(bucket):
    with pytest.raises(StorageError, match='gs://epa-test-none/a'):
        storage.local('gs://epa-test-none/a')


def test_upload_writes_an_object(bucket, tmp_path):
    (tmp_path / 'x').write_text('text')
    storage.upload(tmp_path / 'x', f'{bucket}/x')
    assert get(f'{bucket}/x') == 'text'
    with pytest.raises(StorageError, match='gs://epa-test-none/x'):
        storage.upload(tmp_path / 'x', 'gs://epa-test-none/x')


def test_a_folder_is_replaced_with_its_marker_first_and_last(bucket, monkeypatch):
    for name in ('config.json', 'old', 'weights'):
        put(f'{bucket}/export/{name}', 'old')
    put(f'{bucket}/export2', 'another')
    done = []
    for method in ('rm_file', 'put_file'):
        real = getattr(storage.filesystem(), method)

        def noted(*places, _real=real, _method=method, **options):
            done.append((_method, str(places[-1]).rpartition('/')[2]))
            return _real(*places, **options)

        monkeypatch.setattr(storage.filesystem(), method, noted)
    with storage.new_folder(f'{bucket}/export', 'config.json') as folder:
        for name in ('a', 'config.json', 'weights'):
            (folder / name).write_text('new')
    assert done[0] == ('rm_file', 'config.json')
    assert done[-1] == ('put_file', 'config.json')
    assert names(f'{bucket}/export') == ['a', 'config.json', 'weights']
    assert get(f'{bucket}/export/weights') == 'new'
    assert get(f'{bucket}/export2') == 'another'
    assert not folder.exists()


def test_a_folder_that_was_not_finished_replaces_nothing(bucket):
    put(f'{bucket}/export/config.json', 'old')

    def stopped():
        with storage.new_folder(f'{bucket}/export', 'config.json') as folder:
            folders.append(folder)
            (folder / 'config.json').write_text('new')
            raise KeyboardInterrupt

    folders = []
    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert get(f'{bucket}/export/config.json') == 'old'
    assert not folders[0].exists()


def test_the_bucket_is_that_of_the_emulator(bucket):
    assert bucket.startswith(f'gs://{BUCKET}/')


@pytest.mark.parametrize('command', [compare, evaluate, export, frontier, sample])
def test_commands_that_look_at_runs_ask_for_local_ones(command, capsys):
    with pytest.raises(SystemExit):
        command.main(['gs://bucket/runs/first'])
    assert 'gs://bucket/runs/first: must be a local path here' in capsys.readouterr().err


def test_a_run_s_model_is_found_in_the_bucket(bucket, tmp_path):
    put(f'{bucket}/model/config.json', '{}')
    run = {'model.path': f'{bucket}/model', 'model.tokenizer': ''}
    (tmp_path / 'config.json').write_text(json.dumps(run))
    base, tokenizer = base_model(tmp_path)
    assert (base / 'config.json').read_text() == '{}'
    assert tokenizer == base
