"""Shapes of the batches of a run."""

import json

import pytest

from epa_jax import sharding
from epa_jax.batches import make_batches
from epa_jax.config import ConfigError
from epa_jax.data.load import load_datasets
from epa_jax.data.streams import load_streams
from epa_jax.formats.tokenizer import load_tokenizer
from tests import small_run


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('batches')
    small_run.write(folder)
    text = ' '.join(small_run.WORDS * 5)  # 220 tokens, longer than any pair
    (folder / 'text.jsonl').write_text('\n'.join([json.dumps({'text': text})] * 3))
    return folder


def batches_of(folder, **changes):
    run = small_run.config(folder, **changes)
    tokenizer = load_tokenizer(run.model.path)
    datasets = load_datasets(run.data, tokenizer, min_strong=1)
    mesh = sharding.make_mesh(run.mesh)
    return make_batches(run, datasets, load_streams(run, tokenizer), mesh, 4)


def test_streams_share_one_layout_that_holds_the_longest_text(folder):
    batches = batches_of(
        folder,
        sft__train=str(folder / 'pairs.jsonl'),
        sft__eval_examples=4,
        pretrain__train=str(folder / 'text.jsonl'),
    )
    sft, pretrain = (batches.train.streams[name].layout for name in ('sft', 'pretrain'))
    assert sft == pretrain == batches.held_out_streams['sft'].layout
    assert (sft.row_length, sft.responses) == (256, 1)
    assert batches.train.preference.layout.row_length == 128
    assert sft.rows == batches.train.preference.layout.rows == 8
    assert 'pretrain' not in batches.held_out_streams
    step = next(batches.train.steps())
    assert {b.tokens.shape for b in step.streams['pretrain'].batches} == {(8, 256)}


def test_short_text_is_packed_into_rows_as_long_as_those_of_pairs(folder):
    batches = batches_of(folder, sft__train=str(folder / 'pairs.jsonl'))
    assert batches.train.streams['sft'].layout.row_length == 128
    assert batches.train.streams['sft'].layout.groups_per_row > 4


def test_rows_have_to_fit_the_mesh(folder):
    with pytest.raises(ConfigError, match=r'batch\.rows=3: expected a multiple of .* 8'):
        batches_of(folder, batch__rows=3)
