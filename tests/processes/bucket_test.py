"""A run of two real processes that share nothing but a bucket."""

import json

import jax
import numpy as np
import pytest

from epa_jax import storage
from epa_jax.formats.load import load_model
from tests import small_run
from tests.gcs import get, names
from tests.processes import command
from tests.processes.bucket_worker import STEPS

pytestmark = pytest.mark.endurance


def run(folder, url, count):
    """Runs `count` processes, each with a folder of copies of its own."""
    cache = str(folder / 'copies-{rank}')
    module = 'tests.processes.bucket_worker'
    command.run_workers(module, str(folder), url, count=count, EPA_CACHE=cache)


def losses(text):
    lines = [json.loads(line) for line in text.splitlines()]
    return [(x['step'], x.get('loss'), x.get('eval/loss')) for x in lines]


def assert_same_run(local, url):
    found = losses(get(f'{url}/run/metrics.jsonl'))
    expected = losses((local / 'metrics.jsonl').read_text())
    assert [x[0] for x in found] == [x[0] for x in expected]
    np.testing.assert_allclose(
        np.array(found, float), np.array(expected, float), rtol=1e-5, atol=1e-7
    )
    mine, theirs = (load_model(x)[1] for x in (f'{url}/run/export', local / 'export'))
    for leaf, other in zip(*(flat(x) for x in (mine, theirs)), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-2, atol=1e-4)  # in bfloat16


def flat(params):
    return [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(params)]


def test_processes_that_share_a_bucket_do_the_same_run(bucket, tmp_path):
    small_run.write(tmp_path)
    run(tmp_path, 'local', 1)
    storage.upload(tmp_path / 'pairs.jsonl', f'{bucket}/pairs.jsonl')
    run(tmp_path, bucket, 2)
    assert_same_run(tmp_path / 'run', bucket)
    # as after a kill during the last save
    last = f'{bucket}/run/checkpoints/{STEPS}'
    storage.filesystem().rm_file(f'{last}/commit_success.txt')
    run(tmp_path, bucket, 2)
    assert len(json.loads(get(f'{bucket}/run/environment.json'))) == 2
    assert 'commit_success.txt' in names(last)
    assert_same_run(tmp_path / 'run', bucket)
