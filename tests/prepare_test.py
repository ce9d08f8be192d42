"""What a run is made of before its first step."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from epa_jax import prepare, sharding
from epa_jax.config import ConfigError
from epa_jax.data.load import load_datasets
from epa_jax.formats.tokenizer import load_tokenizer
from epa_jax.models.transformer import Compute
from epa_jax.schema import MeshConfig
from tests import small_run, tiny


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('prepare')
    small_run.write(folder)
    return folder


def job_of(run):
    tokenizer = load_tokenizer(run.model.path)
    datasets = load_datasets(run.data, tokenizer, min_strong=1)
    return prepare.prepare(run, datasets, tokenizer)


@pytest.mark.parametrize(
    ('steps', 'epochs', 'expected'), [(7, 1.0, 7), (0, 1.0, 8), (0, 2.5, 20), (0, 0.13, 1)]
)
def test_steps_follow_epochs_unless_given(folder, steps, epochs, expected):
    run = small_run.config(folder, steps=steps, epochs=epochs)
    assert prepare.steps_of(run, 32) == expected


def test_rows_are_shared_by_training_and_evaluation_and_hold_the_longest(folder):
    run = small_run.config(folder, reference__mode='in_step', batch__rows=16)
    job = job_of(run)
    assert job.batches.train.preference.layout == job.batches.held_out.layout
    assert job.batches.train.preference.layout.rows == 16
    assert job.batches.train.preference.layout.row_length == 128
    assert job.batches.train.preference.layout.responses == 4


def test_a_reference_in_the_step_survives_donation_of_the_policy(folder):
    job = job_of(small_run.config(folder, reference__mode='in_step'))
    jax.tree.map(lambda p: p.delete(), job.weights.trained)
    assert all(not p.is_deleted() for p in jax.tree.leaves(job.frozen))


def test_a_reference_of_another_architecture_is_refused(folder, tmp_path):
    small_run.write(tmp_path, spec=dataclasses.replace(tiny.SPEC, d_ff=32))
    run = small_run.config(folder, reference__path=str(tmp_path / 'model'))
    with pytest.raises(ConfigError, match='differs from the policy in d_ff'):
        job_of(run)


def test_small_rows_say_which_length_is_needed(folder):
    run = small_run.config(folder, batch__row_length=16)
    with pytest.raises(ValueError, match=r'set batch\.row_length to 128 or more'):
        job_of(run)


@pytest.mark.parametrize('tied', [True, False])
def test_the_report_counts_the_flops_of_the_matrices(tmp_path, tied):
    """6 for each parameter and token, 2 forward and 4 backward; a look-up needs none."""
    spec = dataclasses.replace(tiny.SPEC, tie_embeddings=tied)
    small_run.write(tmp_path, spec=spec)
    job = job_of(small_run.config(tmp_path, reference__mode='in_step'))
    heads = 2 * spec.n_heads + 2 * spec.n_kv_heads  # query, output; key, value
    layer = spec.d_model * (heads * spec.head_dim + 3 * spec.d_ff)
    matrices = spec.n_layers * layer + spec.vocab_size * spec.d_model  # one head
    compute = job.report['compute']
    per_token = compute['flops_per_step'] / compute['tokens_per_step']
    norms = (2 * spec.n_layers + 1) * spec.d_model
    assert per_token == pytest.approx(6 * (matrices + norms))


def test_rows_split_over_devices_meet_the_vocabulary_whole():
    alone = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    assert prepare.automatic_chunk(alone) == Compute.logprob_chunk > 0
    assert prepare.automatic_chunk(sharding.make_mesh(MeshConfig(1, -1, 1))) == 0
    assert prepare.automatic_chunk(sharding.make_mesh(MeshConfig(1, 1, -1))) > 0


def test_a_gpu_meets_more_of_the_vocabulary_at_once():
    def mesh(platform):
        device = types.SimpleNamespace(platform=platform)
        return types.SimpleNamespace(devices=np.array([[[device]]]))

    assert prepare.automatic_block(mesh('cpu')) == Compute.vocab_block
    assert prepare.automatic_block(mesh('gpu')) > Compute.vocab_block
