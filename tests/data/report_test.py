"""The data report against counts by hand, and against the batches that are trained on."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from epa_jax.data.examples import ReadReport
from epa_jax.data.load import Datasets
from epa_jax.data.mixture import Mixture
from epa_jax.data.negatives import NegativeRule
from epa_jax.data.packing import Layout, real_tokens
from epa_jax.data.pipeline import Pipeline, Visits
from epa_jax.data.report import SAMPLE, data_report, render
from epa_jax.data.streams import Stream
from epa_jax.data.tokenise import TokeniseReport
from epa_jax.types import Role
from tests.data.token_examples import example, random_examples

# Three prompts, one twice; the second's responses are one, the last's ratings tie.
TRAIN = [
    example([1, 2, 3], [[5], [6, 7]]),
    example([4], [[5, 6], [5, 6], [7]]),
    example([1, 2, 3], [[8, 9], [9]], ratings=[3.0, 1.0]),
    example([2, 2], [[1] * 7, [2], [3]], ratings=[2.0, 2.0, 1.0]),
]
HELD_OUT = [example([9] * 5, [[1], [2, 2]])]


def pipeline(examples, rule=None, layouts=None, **visits):
    defaults = {'prompts': 2, 'seed': 0, 'shuffle': True, 'resample': True}
    return Pipeline(
        examples,
        rule or NegativeRule(seed=0, n_strong=1, n_weak=0, weak_source='any'),
        Visits(size=len(examples), **{**defaults, **visits}),
        layouts or (Layout(rows=1, row_length=16, groups_per_row=2, responses=2),),
    )


def test_streams_are_counted_and_shown():
    kept = TokeniseReport(kept=2, truncated_responses=1)
    kept.drop('its prompt is held out', ['x:3'])
    stream = Stream(
        name='sft',
        weight=0.5,
        sequences=4,
        train=[example([1, 2], [[3, 4]]), example([1], [[5]])],
        held_out=[example([1], [[6]])],
        read=[ReadReport('train.jsonl', read=4)],  # also that of the preference data
        tokenised=kept,
        held_out_tokenised=TokeniseReport(kept=1, truncated_prompts=1),
    )
    datasets = datasets_of(TRAIN)
    report = data_report(datasets, Mixture(pipeline(TRAIN)), 3, 10, [stream])
    found = report['streams']['sft']
    assert (found['sequences'], found['tokens']['total'], found['epochs']) == (2, 6, 6.0)
    assert found['tokens_per_step'] == 12.0
    found = [(r['source'], r['group'], r['examples']) for r in report['read']]
    assert found == [('train.jsonl', 'data', 4), ('train.jsonl', 'sft', 4)]
    alone = data_report(datasets, Mixture(pipeline(TRAIN)), 3, 10)
    tokens = alone['compute']['tokens_per_step'] + 12.0
    assert report['compute']['tokens_per_step'] == pytest.approx(tokens)
    text = render(report)
    for line in (
        'read       4 examples from train.jsonl\n',
        'read       4 examples from train.jsonl (sft)\n',
        '2 sequences, median 3 tokens, 4 a step (6.00 epochs), weight 0.5; 1 held out',
        '1 examples dropped: its prompt is held out (first x:3)',
        '1 responses truncated, EOS lost',
        '1 held-out prompts truncated on the left',
    ):
        assert line in text


def datasets_of(train, held_out=(), **changes):
    made = Datasets(
        list(train),
        list(held_out),
        [ReadReport('train.jsonl', len(train))],
        TokeniseReport(len(train)),
        TokeniseReport(len(held_out)),
    )
    return dataclasses.replace(made, **changes)


def reported():
    """A report in which nothing is zero."""
    read = [ReadReport('train.jsonl', 9), ReadReport('test.jsonl', 1)]
    read[0].skipped['chosen is missing'] = 2
    read[0].first_skipped['chosen is missing'] = 'train.jsonl:4'
    fate = TokeniseReport(
        kept=4, truncated_prompts=11, truncated_responses=12, eos_inside=13
    )
    fate.drop('its prompt is held out', ['train.jsonl:1', 'train.jsonl:2'])
    fate.drop('the prompt is too long', ['train.jsonl:7', 'train.jsonl:8', 'train.jsonl:9'])
    fate.dropped_responses['too long'] = 14
    datasets = datasets_of(TRAIN, HELD_OUT, read=read, tokenised=fate)
    return data_report(
        datasets, Mixture(pipeline(TRAIN)), total_steps=2, flops_per_token=6e9
    )


def test_counts_by_hand():
    report = reported()
    skipped = {'chosen is missing': {'count': 2, 'first': 'train.jsonl:4'}}
    assert report['read'] == [
        {
            'source': 'train.jsonl',
            'group': 'data',
            'examples': 9,
            'skipped_lines': skipped,
        },
        {'source': 'test.jsonl', 'group': 'data', 'examples': 1, 'skipped_lines': {}},
    ]
    train = report['train']
    assert train['examples'] == 4
    assert train['duplicate_prompts'] == 1
    assert train['with_identical_responses'] == 1
    assert train['with_tied_best'] == 1
    # prompts of 3, 1, 3, 2 tokens; responses of 1, 2, 2, 2, 1, 2, 1, 7, 1, 1
    assert train['prompt_tokens'] == pytest.approx(
        {'min': 1, 'median': 2.5, 'p95': 3, 'max': 3, 'total': 9}
    )
    assert train['response_tokens'] == pytest.approx(
        {'min': 1, 'median': 1.5, 'p95': 2 + 0.55 * 5, 'max': 7, 'total': 20}
    )
    assert train['dropped'] == {
        'its prompt is held out': {'count': 2, 'first': 'train.jsonl:1'},
        'the prompt is too long': {'count': 3, 'first': 'train.jsonl:7'},
    }
    assert train['dropped_responses'] == {'too long': 14}
    assert train['truncated_prompts'] == 11
    assert train['truncated_responses_without_eos'] == 12
    assert train['responses_with_eos_inside'] == 13
    assert report['held_out']['examples'] == 1
    assert report['held_out']['prompt_tokens']['total'] == 5
    assert report['held_out']['dropped'] == {}


def test_one_epoch_by_hand():
    report = reported()
    visits = report['visits']
    assert (visits['steps'], visits['prompts_per_step'], visits['epochs']) == (2, 2, 1.0)
    assert visits['responses'] == {'chosen': 4, 'rejected': 4}
    # prompt, chosen, and the one negative that is neither identical nor tied: 3+1+2,
    # 1+2+1, 3+2+1, 2+7+1
    assert visits['tokens_per_prompt'] == pytest.approx(
        {'min': 4, 'median': 6, 'p95': 6 + 0.85 * 4, 'max': 10, 'total': 26}
    )
    # any two of them fit a row of 16, so both steps are one micro-batch
    assert report['rows'] == {
        'row_lengths': [16],
        'rows_per_micro_batch': 1,
        'micro_batches_per_step': 1.0,
        'padding': 1 - 26 / 32,
    }
    assert report['compute'] == {'tokens_per_step': 13.0, 'flops_per_step': 78e9}


def test_the_text_says_what_the_json_says():
    assert render(reported()).splitlines() == [
        'data report',
        '  read       9 examples from train.jsonl',
        '  skipped    2 lines: chosen is missing (first train.jsonl:4)',
        '  read       1 examples from test.jsonl',
        '  train      4 examples',
        '             1 duplicate prompts',
        '             1 with identical responses',
        '             1 with a tie for the best rating',
        '             11 prompts truncated on the left',
        '             12 responses truncated, EOS lost',
        '             13 responses with an EOS before their end',
        '             2 examples dropped: its prompt is held out (first train.jsonl:1)',
        '             3 examples dropped: the prompt is too long (first train.jsonl:7)',
        '             14 responses dropped: too long',
        '             tokens (median / 95 % / max): prompt 2 / 3 / 3, response 2 / 5 / 7',
        '  held_out   1 examples',
        '             tokens (median / 95 % / max): prompt 5 / 5 / 5, response 2 / 2 / 2',
        "  steps      2 of 2 prompts, 1.00 epochs; responses: {'chosen': 4, 'rejected': 4}",
        '  prompt with its responses: median 6 tokens, longest 10',
        '  rows       16 tokens, 18.8% padding, 1.0 micro-batches of 1 a step',
        '  compute    13 tokens and 0.078 TFLOP a step',
    ]


def test_rows_of_several_lengths_are_all_named():
    report = reported()
    report['rows']['row_lengths'] = [128, 256, 384]
    assert '  rows       128, 256 or 384 tokens, 18.8% padding' in render(report)


def test_the_report_is_json_and_is_rendered_alike_when_read_back():
    report = reported()
    back = json.loads(json.dumps(report, allow_nan=False))
    assert back == report
    assert render(back) == render(report)


def test_nothing_held_out_and_nothing_amiss_takes_few_lines():
    fine = random_examples(4)
    layouts = (Layout(1, 64, 4, 2),)
    text = render(
        data_report(datasets_of(fine), Mixture(pipeline(fine, layouts=layouts)), 2, 1)
    )
    assert '  held_out   0 examples\n' in text
    assert not any(word in text for word in ('dropped', 'truncated', 'skipped', 'None'))


@pytest.mark.parametrize('resample', [True, False])
@pytest.mark.parametrize('shuffle', [True, False])
@pytest.mark.parametrize(('prompts', 'steps'), [(4, 9), (7, 1), (30, 2)])
@pytest.mark.parametrize('lengths', [(64,), (48, 64, 80)])
def test_numbers_are_those_of_the_batches(shuffle, resample, prompts, steps, lengths):
    """What the run will do, counted over the micro-batches that it is given."""
    examples = random_examples(17)
    data = pipeline(
        examples,
        NegativeRule(3, 2, 2, 'any'),
        tuple(Layout(rows=2, row_length=n, groups_per_row=3, responses=5) for n in lengths),
        prompts=prompts,
        shuffle=shuffle,
        resample=resample,
    )
    report = data_report(
        datasets_of(examples), Mixture(data), steps, flops_per_token=6000.0
    )
    batches = [step.preference for step in itertools.islice(Mixture(data).steps(), steps)]
    flat = list(itertools.chain(*batches))
    tokens = sum(real_tokens(batch) for batch in flat)
    cells = sum(batch.tokens.size for batch in flat)
    assert report['rows']['micro_batches_per_step'] == len(flat) / steps
    assert report['rows']['padding'] == pytest.approx(1 - tokens / cells)
    assert report['compute']['tokens_per_step'] == pytest.approx(tokens / steps)
    assert report['compute']['flops_per_step'] == pytest.approx(6000 * tokens / steps)
    assert report['visits']['tokens_per_prompt']['total'] == tokens
    assert report['visits']['epochs'] == pytest.approx(steps * prompts / 17)
    roles = np.concatenate([batch.roles.ravel() for batch in flat])
    assert report['visits']['responses'] == {
        role.name.lower(): int((roles == role).sum())
        for role in (Role.CHOSEN, Role.REJECTED, Role.WEAK)
    }


def test_padding_is_that_of_the_first_steps_of_a_long_run():
    examples = random_examples(5)
    data = pipeline(examples, layouts=(Layout(2, 32, 2, 2),))
    rows = [
        data_report(datasets_of(examples), Mixture(data), steps, 1)['rows']
        for steps in (SAMPLE, SAMPLE + 9)
    ]
    assert rows[0] == rows[1]
