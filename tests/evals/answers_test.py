"""Answers against one option at a time through the whole softmax."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from epa_jax import sharding
from epa_jax.evals.answers import answer
from epa_jax.evals.scoring import ScoreError
from epa_jax.evals.tasks import read_task
from epa_jax.models import transformer
from epa_jax.models.transformer import Compute
from epa_jax.schema import MeshConfig
from tests import small_run, tiny

WORDS = small_run.WORDS


def write(path, records):
    path.write_text(''.join(json.dumps(r) + '\n' for r in records), 'utf-8')
    return read_task(str(path))


def phrase(rng, low, high):
    return ' '.join(rng.choice(WORDS, rng.integers(low, high)))


@pytest.fixture
def choices(tmp_path):
    rng = np.random.default_rng(0)
    counts = [2, 4, 3, 2, 4, 5, 2] * 3
    return write(
        tmp_path / 'choices.jsonl',
        [
            {
                'query': phrase(rng, 1, 9),
                'choices': [phrase(rng, 1, 5) for _ in range(count)],
                'gold': int(rng.integers(count)),
            }
            for count in counts
        ],
    )


def by_hand(params, option):
    """Log-prob of each token, and what greedy decoding would say in its place."""
    tokenizer = small_run.tokenizer()
    prompt = tokenizer(option.context)['input_ids']
    response = tokenizer(option.continuation)['input_ids']
    table = np.asarray(tiny.sequence_distributions(params, tiny.SPEC, prompt, response))
    return table[np.arange(len(response)), response], table.argmax(axis=1) == response


def answered(task, params, **more):
    return answer(task, params, tiny.SPEC, Compute(), small_run.tokenizer(), **more)


def test_choices(choices):
    params = tiny.params()
    found = answered(choices, params)
    for n, question in enumerate(choices.questions):
        logps = np.array([by_hand(params, o)[0].sum() for o in question.options])
        np.testing.assert_allclose(found.logps[n, : len(logps)], logps, rtol=1e-5)
        assert np.isnan(found.logps[n, len(logps) :]).all()
        assert found.correct[n] == (np.argmax(logps) == question.gold)
        length = [len(o.continuation.strip()) for o in question.options]
        best = np.argmax(logps / np.array(length))
        assert found.correct_per_character[n] == (best == question.gold)
        share = np.exp(logps) / np.exp(logps).sum()
        np.testing.assert_allclose(found.gold_probability[n], share[question.gold], 1e-4)
    summary = found.summary()
    right = found.correct
    assert summary['accuracy'] == right.mean()
    assert summary['accuracy_error'] == pytest.approx(right.std(ddof=1) / len(right) ** 0.5)
    assert summary['questions'] == summary['in_file'] == 21
    assert 0 < right.mean() < 1  # else this test shows little
    assert found.records()[1]['logps'] == [float(x) for x in found.logps[1, :4]]


def test_contexts_to_choose_from(tmp_path):
    rng = np.random.default_rng(1)
    task = write(
        tmp_path / 'w.jsonl',
        [
            {
                'context_options': [phrase(rng, 2, 6), phrase(rng, 2, 6)],
                'continuation': phrase(rng, 1, 4),
                'gold': 0,
            }
            for _ in range(6)
        ],
    )
    params = tiny.params()
    found = answered(task, params)
    for n, question in enumerate(task.questions):
        logps = [by_hand(params, o)[0].sum() for o in question.options]
        np.testing.assert_allclose(found.logps[n], logps, rtol=1e-5)


def test_completions(tmp_path):
    rng = np.random.default_rng(2)
    params, tokenizer = tiny.params(), small_run.tokenizer()
    records = []
    for i in range(8):
        context = phrase(rng, 2, 6)
        ids = tokenizer(context)['input_ids']
        text = phrase(rng, 1, 3)
        if i % 2:  # what the model would say
            last = tiny.sequence_distributions(params, tiny.SPEC, ids, [0])[0]
            text = tokenizer.decode([int(np.argmax(last))])
        if text.strip():
            records.append({'context': context, 'continuation': text})
    task = write(tmp_path / 'c.jsonl', records)
    found = answered(task, params)
    logps, greedy = zip(
        *(by_hand(params, q.options[0]) for q in task.questions), strict=True
    )
    sums = [x.sum() for x in logps]
    assert found.greedy.tolist() == [bool(x.all()) for x in greedy]
    assert 0 < found.greedy.sum() < len(records)
    summary = found.summary()
    assert summary['perplexity'] == pytest.approx(np.exp(-np.mean(sums)), rel=1e-4)
    assert summary['accuracy'] == found.greedy.mean()
    assert 'accuracy_per_character' not in summary


def test_one_question_that_all_share_a_context_with(tmp_path):
    record = {'query': 'w1 w2', 'choices': ['w3', 'w4 w5'], 'gold': 0}
    task = write(tmp_path / 'same.jsonl', [record] * 5)
    found = answered(task, tiny.params())
    assert found.logps.shape == (5, 2)
    np.testing.assert_allclose(found.logps, found.logps[:1].repeat(5, 0), rtol=1e-5)


@pytest.mark.parametrize('shape', [(1, 8, 1), (2, 2, 2)])
def test_any_mesh_and_rows_give_the_same(choices, shape):
    plain = answered(choices, tiny.params())
    mesh = sharding.make_mesh(MeshConfig(*shape))
    params = jax.device_put(
        tiny.params(),
        sharding.param_shardings(
            mesh,
            transformer.abstract_params(tiny.SPEC, 'float32'),
            transformer.logical_axes(tiny.SPEC),
        ),
    )
    compute = Compute(mesh=mesh)
    for rows in (1, 3):
        found = answer(
            choices,
            params,
            tiny.SPEC,
            compute,
            small_run.tokenizer(),
            mesh=mesh,
            rows=rows,
        )
        np.testing.assert_allclose(found.logps, plain.logps, rtol=1e-5, atol=1e-5)


def test_a_model_that_gives_nan_is_refused(choices):
    params = jax.tree.map(lambda p: p * np.nan, tiny.params())
    with pytest.raises(ScoreError, match=r'NaN for 66 of 66 responses'):
        answered(choices, params)


def test_contexts_that_the_model_cannot_read_whole_are_cut_and_counted(choices):
    spec = dataclasses.replace(tiny.SPEC, max_positions=8)
    found = answer(choices, tiny.params(), spec, Compute(), small_run.tokenizer())
    long = [
        max(len(o.context.split()) + len(o.continuation.split()) for o in q.options) > 8
        for q in choices.questions
    ]
    assert found.summary()['cut_options'] >= sum(long) > 0
