"""Shapes of the batches of a run."""

import itertools
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
    run = small_run.config(folder, **({'steps': 4} | changes))
    tokenizer = load_tokenizer(run.model.path)
    datasets = load_datasets(run.data, tokenizer, min_strong=1)
    mesh = sharding.make_mesh(run.mesh)
    return make_batches(run, datasets, load_streams(run, tokenizer), mesh, run.steps)


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


@pytest.fixture(scope='module')
def varied(tmp_path_factory):
    """Pairs of which some are ten times as long as others."""
    folder = tmp_path_factory.mktemp('varied')
    small_run.write(folder)
    words = small_run.WORDS
    records = [
        {'prompt': ' '.join(words[i % 40 :]), 'chosen': ' '.join(words[: 1 + i * i % 44]),
         'rejected': ' '.join(words[: 1 + 7 * i % 44])}
        for i in range(120)
    ]  # fmt: skip
    (folder / 'pairs.jsonl').write_text('\n'.join(map(json.dumps, records)))
    return folder


LONG = {
    'data__max_prompt_tokens': 48,
    'data__max_response_tokens': 48,
    'mesh__data': 1,
    'mesh__fsdp': 2,
    'mesh__tensor': 4,
    'batch__prompts': 6,
}


def cells(batches, steps=40):
    taken = itertools.islice(batches.train.steps(), steps)
    return sum(batch.tokens.size for step in taken for batch in step.preference)


def lengths(batches):
    return [layout.row_length for layout in batches.train.preference.layouts]


def test_more_lengths_of_rows_leave_less_padding(varied):
    few, more = (batches_of(varied, **LONG, steps=40, batch__row_lengths=n) for n in (1, 3))
    assert len(lengths(few)) == 1 < len(lengths(more)) <= 3
    assert cells(more) < cells(few)
    assert more.held_out.layouts == more.train.preference.layouts


def test_a_given_length_is_the_only_one_or_the_longest(varied):
    assert lengths(batches_of(varied, **LONG, batch__row_length=500)) == [500]
    given = {'batch__row_length': 500, 'batch__row_lengths': 3}
    three = batches_of(varied, **LONG, **given, steps=40)
    assert len(lengths(three)) > 1
    assert max(lengths(three)) <= 500


def test_few_steps_do_not_pay_for_another_length(varied):
    assert len(lengths(batches_of(varied, **LONG))) == 1
    assert len(lengths(batches_of(varied, **LONG, steps=4000))) > 1


def test_a_given_length_that_is_too_short_is_refused(varied):
    with pytest.raises(ConfigError, match=r'rows hold 128; set batch\.row_length to 256'):
        batches_of(varied, **LONG, batch__row_length=128)


def test_rows_have_to_fit_the_mesh(folder):
    with pytest.raises(ConfigError, match=r'batch\.rows=3: expected a multiple of .* 8'):
        batches_of(folder, batch__rows=3)
