"""A rehearsal compiles every shape and changes nothing."""

import dataclasses

import jax
import numpy as np
import pytest

from epa_jax.coupling import sum_up
from epa_jax.data.load import load_datasets
from epa_jax.data.streams import load_streams
from epa_jax.formats.tokenizer import load_tokenizer
from epa_jax.likelihood import add_streams
from epa_jax.prepare import prepare
from epa_jax.rehearsal import rehearse
from epa_jax.train_step import init_state
from tests import small_run


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('rehearsal')
    small_run.write(folder)
    return folder


def job_of(folder, lengths=(64, 128), **changes):
    """A run, and its train state, whose rows have these lengths."""
    run = small_run.config(folder, **changes)
    tokenizer = load_tokenizer(run.model.path)
    datasets = load_datasets(run.data, tokenizer, min_strong=1)
    job = prepare(run, datasets, tokenizer, load_streams(run, tokenizer))
    mixture = job.batches.train

    def with_lengths(pipeline):
        layouts = [dataclasses.replace(pipeline.layout, row_length=n) for n in lengths]
        return dataclasses.replace(pipeline, layouts=tuple(layouts))

    streams = {name: with_lengths(text) for name, text in mixture.streams.items()}
    mixture = dataclasses.replace(
        mixture, preference=with_lengths(mixture.preference), streams=streams
    )
    batches = dataclasses.replace(job.batches, train=mixture)
    state = init_state(job.weights.trained, job.optimizer, job.loss.nothing_carried())
    return dataclasses.replace(job, batches=batches), state


def step(job, state, lengths):
    """The sums of a step whose rows have one of the lengths."""
    mixture = job.batches.train
    groups = [mixture.preference.group(v) for v in mixture.preference.visits.first(1)]
    totals = []
    for length in lengths:
        layout = dataclasses.replace(mixture.preference.layout, row_length=length)
        pipeline = dataclasses.replace(mixture.preference, layouts=(layout,))
        placed = [job.programs.place(batch) for batch in pipeline.pack(groups)]
        total, _ = sum_up(job.programs, job.loss, state, job.frozen, placed)
        totals.append(jax.device_get(total.grads))
    return totals


@pytest.mark.parametrize(
    ('loss', 'names'), [('epa', {'accumulate': 2}), ('kto', {'table': 2, 'pull': 2})]
)
def test_every_shape_is_compiled_before_it_is_met(folder, loss, names):
    job, state = job_of(folder, loss__name=loss)
    before = jax.device_get(state)
    rehearse(job.programs, job.loss, state, job.frozen, job.batches.train)
    assert job.programs.traces == names
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), before)
    short, long = step(job, state, (64, 128))
    assert {name: job.programs.traces[name] for name in names} == names
    for a, b in zip(jax.tree.leaves(short), jax.tree.leaves(long), strict=True):
        np.testing.assert_allclose(a, b, rtol=5e-3, atol=1e-5)


def test_text_is_rehearsed_too(folder):
    job, state = job_of(folder, sft__train=str(folder / 'pairs.jsonl'))
    rehearse(job.programs, job.loss, state, job.frozen, job.batches.train)
    assert job.programs.traces == {'accumulate': 2, 'imitate': 2}
    data = next(job.batches.train.steps())
    add_streams(
        job.programs,
        job.programs.zero(),
        state.params,
        job.frozen,
        data.streams,
        job.stream_weights,
        job.run.batch.prompts,
    )
    assert job.programs.traces['imitate'] == 2


def test_one_shape_needs_no_rehearsal(folder):
    job, state = job_of(folder, lengths=(128,))
    rehearse(job.programs, job.loss, state, job.frozen, job.batches.train)
    assert not job.programs.traces
