"""Reference log-probs of a run: exact, reused when nothing changed, refused when stale."""

import contextlib
import itertools
import logging

import jax
import numpy as np
import pytest

from epa_jax import cached_reference, weights
from epa_jax import prepare as prepare_lib
from epa_jax.data import pipeline
from epa_jax.data.load import load_datasets
from epa_jax.formats.load import load_model
from epa_jax.formats.tokenizer import load_tokenizer
from epa_jax.prepare import prepare
from epa_jax.reference import StaleCacheError
from tests import small_run, tiny


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('cached')
    small_run.write(folder)
    return folder


def job_of(run, alive=lambda: None):
    tokenizer = load_tokenizer(run.model.path)
    datasets = load_datasets(run.data, tokenizer, min_strong=1)
    return prepare(
        run, datasets, tokenizer, attend=lambda *_: contextlib.nullcontext(alive)
    )


@pytest.fixture(scope='module')
def job(folder):
    return job_of(small_run.config(folder, steps=3))


def test_every_visit_has_the_log_probs_of_the_start(folder, job):
    spec, params = load_model(folder / 'model')
    batch = next(job.batches.train.steps()).preference[0]
    group = job.batches.train.preference.group((0, int(batch.keys[0, 0])))
    sums = [
        float(np.sum(tiny.sequence_logps(params, spec, group.prompt_ids, ids)))
        for ids in group.response_ids
    ]
    np.testing.assert_allclose(batch.ref_logps[0, 0], sums, rtol=1e-4)


def test_the_second_run_reuses_the_files(folder, job, caplog, monkeypatch):
    monkeypatch.setattr(
        prepare_lib.CachedReference, 'compute', lambda *a: pytest.fail('computed again')
    )
    with caplog.at_level(logging.INFO, logger='epa_jax'):
        again = job_of(small_run.config(folder, 'other', steps=3, loss__beta=0.5))
    assert 'reused' in caplog.text
    np.testing.assert_array_equal(
        again.batches.train.preference.ref_logps, job.batches.train.preference.ref_logps
    )


@pytest.mark.parametrize(
    'change',
    [{'data__max_response_tokens': 3}, {'seed': 1}, {'model__compute_dtype': 'bfloat16'}],
)
def test_other_tokens_negatives_or_arithmetic_are_computed_anew(folder, job, change):
    before = set((folder / 'cache').iterdir())
    job_of(small_run.config(folder, steps=3, **change))
    assert set((folder / 'cache').iterdir()) - before


def test_a_cache_file_of_other_weights_is_refused(folder, job, tmp_path):
    small_run.write(tmp_path, seed=1)
    (tmp_path / 'pairs.jsonl').write_text((folder / 'pairs.jsonl').read_text())
    shape = job.batches.train.preference.ref_logps.shape
    file = next(
        path for path in (folder / 'cache').iterdir() if path.stat().st_size > shape[0]
    )
    run = small_run.config(tmp_path, steps=3, reference__cache_file=str(file))
    with pytest.raises(StaleCacheError, match='weights'):
        job_of(run)


def test_a_reference_that_gives_no_numbers_is_refused(folder, monkeypatch):
    real = weights.load_model

    def broken(*args):
        spec, params = real(*args)
        return spec, jax.tree.map(lambda p: p * np.nan, params)

    monkeypatch.setattr(weights, 'load_model', broken)
    with pytest.raises(ValueError, match='log-probs that are not numbers'):
        job_of(small_run.config(folder, steps=3, seed=5))


@pytest.fixture
def small_chunks(monkeypatch):
    for module in (pipeline, cached_reference):
        monkeypatch.setattr(module, 'CHUNK', 8)


def batches_of(run, stop_after=None, error=SystemExit):
    """How many batches the reference's pass computed, and the job where it ended."""
    count = itertools.count(1)
    done = []

    def alive():
        done.append(next(count))
        if done[-1] == stop_after:
            raise error

    if stop_after is None:
        job = job_of(run, alive)
        return len(done), job
    with pytest.raises(error):
        job_of(run, alive)
    return len(done), None


def logps_of(job):
    batches = job.batches
    return np.concatenate([batches.train.preference.ref_logps, batches.held_out.ref_logps])


@pytest.mark.parametrize(
    ('error', 'lost'),
    [(SystemExit, 0), (KeyboardInterrupt, 0), (RuntimeError, 1)],
)
def test_a_pass_that_was_cut_goes_on(
    folder, tmp_path, monkeypatch, small_chunks, error, lost
):
    """After an error, which stands for a kill, from what was kept before its batch."""
    runs = {
        name: small_run.config(folder, reference__cache_dir=str(tmp_path / name))
        for name in ('whole', 'cut')
    }
    whole, expected = batches_of(runs['whole'])
    monkeypatch.setattr(cached_reference, 'KEEP_SECONDS', -1.0)
    done, _ = batches_of(runs['cut'], stop_after=4, error=error)
    (kept,) = (tmp_path / 'cut').iterdir()
    assert kept.name.endswith('.safetensors.unfinished')
    rest, job = batches_of(runs['cut'])
    assert (done, rest) == (4, whole - 4 + lost)
    np.testing.assert_array_equal(logps_of(job), logps_of(expected))
    files = [sorted(p.name for p in (tmp_path / n).iterdir()) for n in runs]
    assert files[0] == files[1]


def test_a_damaged_file_of_a_cut_pass_is_left_aside(folder, tmp_path, small_chunks, caplog):
    run = small_run.config(folder, reference__cache_dir=str(tmp_path))
    batches_of(run, stop_after=4)
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(kept.read_bytes()[:-6])
    _, job = batches_of(run)
    assert 'from the beginning' in caplog.text
    assert not np.isnan(logps_of(job)).any()
    assert not kept.exists()
