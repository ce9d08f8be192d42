"""Whole runs with everything in a bucket: data, model, run folder, checkpoints, export."""

import json

import jax
import numpy as np
import pytest

from epa_jax import storage
from epa_jax.config import ConfigError
from epa_jax.formats.load import load_model
from epa_jax.train import train
from tests import small_run
from tests.gcs import get, names, put

STEPS = 6
pytestmark = pytest.mark.exhaustive


@pytest.fixture(scope='module')
def local(tmp_path_factory):
    """Model and data, and the same run with a local folder."""
    folder = tmp_path_factory.mktemp('local')
    small_run.write(folder)
    return folder, train(small_run.config(folder, **changes()))


def changes(**more):
    return {'steps': STEPS, 'checkpoint__every': 2, 'log__tensorboard': True} | more


def upload(folder, url):
    for file in folder.rglob('*'):
        if file.is_file():
            storage.upload(file, f'{url}/{file.relative_to(folder).as_posix()}')


@pytest.fixture
def remote(local, bucket):
    """The configuration of the same run, all of it in the bucket."""
    folder, _ = local
    upload(folder / 'model', f'{bucket}/model')
    storage.upload(folder / 'pairs.jsonl', f'{bucket}/pairs.jsonl')

    def config(**more):
        return small_run.config(
            folder,
            **changes(
                workdir=f'{bucket}/run',
                model__path=f'{bucket}/model',
                data__train=f'{bucket}/pairs.jsonl',
                reference__cache_dir=f'{bucket}/cache',
                **more,
            ),
        )

    return config


def test_a_run_in_a_bucket_is_that_in_a_folder(local, remote, bucket, tmp_path):
    folder, expected = local
    result = train(remote())
    assert str(result.folder) == f'{bucket}/run'
    found = names(f'{bucket}/run')
    for name in (
        'config.json', 'environment.json', 'data_report.json', 'summary.json',
        'export/config.json', 'export/model.safetensors', 'export/tokenizer.json',
    ):  # fmt: skip
        assert name in found
    assert any(name.startswith('tensorboard/events') for name in found)
    assert any(name.startswith(f'checkpoints/{STEPS}/') for name in found)
    assert len(names(f'{bucket}/cache')) == 2  # of training and of held-out data
    assert small_run.computed(get(f'{bucket}/run/metrics.jsonl')) == small_run.computed(
        (folder / 'run/metrics.jsonl').read_text()
    )
    _, exported = load_model(f'{bucket}/run/export')
    for leaf, other in zip(*map(leaves, (exported, expected.params)), strict=True):
        np.testing.assert_array_equal(leaf, other)


def leaves(params):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(params)]


def test_a_run_goes_on_from_what_the_bucket_holds(local, remote, bucket):
    folder, expected = local
    train(remote())
    checkpoint = f'{bucket}/run/checkpoints'
    assert {name.split('/')[0] for name in names(checkpoint)} >= {str(STEPS)}
    # as after a kill in the middle of the last save: Orbax marks a finished one
    files = storage.filesystem()
    (marker,) = (n for n in names(f'{checkpoint}/{STEPS}') if n == 'commit_success.txt')
    files.rm_file(f'{checkpoint}/{STEPS}/{marker}')
    with_torn_line = get(f'{bucket}/run/metrics.jsonl') + '{"step": '
    put(f'{bucket}/run/metrics.jsonl', with_torn_line)
    logged = '{"message": "of an earlier start"}\n'
    put(f'{bucket}/run/logs/process_0.jsonl', logged)
    result = train(remote())
    assert len(json.loads(get(f'{bucket}/run/environment.json'))) == 2
    assert get(f'{bucket}/run/logs/process_0.jsonl').startswith(logged)
    assert small_run.computed(get(f'{bucket}/run/metrics.jsonl')) == small_run.computed(
        (folder / 'run/metrics.jsonl').read_text()
    )
    for leaf, other in zip(*map(leaves, (result.params, expected.params)), strict=True):
        np.testing.assert_array_equal(leaf, other)


def test_a_bucket_with_another_run_is_refused(remote, bucket):
    put(f'{bucket}/run/config.json', json.dumps({'seed': 5}))
    with pytest.raises(ConfigError, match=f'{bucket}/run/config.json: .*another run'):
        train(remote())
    assert names(f'{bucket}/run') == ['config.json']


def test_a_run_that_is_refused_leaves_nothing(remote, bucket):
    with pytest.raises(storage.StorageError, match=f'{bucket}/nothing: no such file'):
        train(remote(model__tokenizer=f'{bucket}/nothing'))
    assert names(f'{bucket}/run') == []


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('workdir', 's3://bucket/run'),
        ('workdir', 'gs://bucket'),
        ('model__path', 'hf://someone/model'),
        ('data__train', 'https://host/data.jsonl'),
        ('plan__architecture', 'gs://bucket/config.json'),
    ],
)
def test_urls_that_are_not_read_are_refused(tmp_path, key, value):
    with pytest.raises(ConfigError, match=f'{key.replace("__", ".")}=.{value}.: '):
        small_run.config(tmp_path, **{key: value})


def test_a_prompt_may_hold_a_url(tmp_path):
    text = 'Cite https://example.org/a.'
    run = small_run.config(tmp_path, data__system_prompt=text)
    assert run.data.system_prompt == text
