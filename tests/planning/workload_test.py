"""Lengths that are assumed against lengths that are measured."""

import dataclasses

import jax
import pytest

from epa_jax import sharding
from epa_jax.config import ConfigError
from epa_jax.data import row_lengths
from epa_jax.models.mask import Tokens, visible
from epa_jax.planning.workload import visible_pairs, workload
from epa_jax.prepare import loss_of
from epa_jax.schema import PlanConfig
from tests import small_run, tiny


def of(run):
    return workload(run, sharding.make_mesh(run.mesh), loss_of(run))


def planned(run, row_length=256, **given):
    plan = PlanConfig(
        **{'prompt_tokens': 20, 'response_tokens': 10, 'examples': 80} | given
    )
    batch = dataclasses.replace(run.batch, row_length=row_length, prompts=16)
    return dataclasses.replace(run, plan=plan, batch=batch, steps=0)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('run')
    small_run.write(folder)
    return small_run.config(folder)


def test_pairs_are_those_of_the_mask():
    group = ([1] * 5, [[2] * 3, [3] * 3])
    batch = tiny.pack_by_hand([[group]], 11, 1, 2)
    mask = visible(Tokens(batch.positions, batch.segments, batch.branches), None)
    assert visible_pairs(5, 3, 2) == jax.device_get(mask).sum()


def test_assumed_lengths_fill_rows(run):
    work = of(planned(run))  # 20 + 4 * 10 tokens a prompt, 4 or so in a row, 8 rows
    assert work.tokens == 16 * 60
    assert work.scored == 16 * 40
    assert (work.micro_batches, work.layout.rows, work.layout.responses) == (1, 8, 4)
    assert work.steps == 80 // 16
    assert of(planned(run, row_length=64)).micro_batches == 2  # one a row


def test_text_has_rows_of_its_own(run):
    sft = dataclasses.replace(run.sft, train='text', sequences=20)
    work = of(dataclasses.replace(planned(run, sft_tokens=100), sft=sft))
    assert work.text_micro_batches == 2  # 20 sequences, 2 a row of 256, 8 rows
    assert work.tokens == 16 * 60 + 20 * 100
    with pytest.raises(ConfigError, match=r'plan\.sft_tokens'):
        of(dataclasses.replace(planned(run), sft=sft))


def test_data_that_are_here_are_measured(run):
    work = of(run)
    assert work.source.startswith('measured')
    assert work.layout.row_length == 128
    assert work.scored < work.tokens < 4 * (9 + 4 * 8)
    assert work.micro_batches == 1
    assert work.prompts == 32


def test_micro_batches_of_shorter_rows_count_in_part(run, monkeypatch):
    monkeypatch.setattr(row_lengths, 'choose', lambda *_: [64, 128])
    work = of(run)  # four prompts of up to 40 tokens, 8 rows: one micro-batch of 64
    assert work.layout.row_length == 128
    assert work.micro_batches == 0.5


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        ({'response_tokens': 0}, r'plan\.response_tokens'),
        ({'examples': 0}, r'plan\.examples'),
        ({'response_tokens': 100}, 'needs 420'),
    ],
)
def test_what_is_missing_is_named(run, given, message):
    with pytest.raises(ConfigError, match=message):
        of(planned(run, **given))


def test_absent_data_need_lengths(run):
    data = dataclasses.replace(run.data, train='nowhere.jsonl')
    with pytest.raises(ConfigError, match=r'plan\.prompt_tokens'):
        of(dataclasses.replace(run, data=data))
