"""Implicit rewards against log-probs of one response at a time."""

import argparse
import json

import numpy as np
import pytest

from epa_jax.config import ConfigError
from epa_jax.formats.load import load_model
from epa_jax.implicit import add_implicit_arguments, implicit_rewards
from tests import small_run, tiny

PAIRS = [
    {'prompt': 'w1 w2', 'chosen': 'w3 w4 w5', 'rejected': 'w6'},
    {'prompt': 'w7', 'chosen': 'w8', 'rejected': 'w9 w1'},
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Two models and some pairs."""
    folder = tmp_path_factory.mktemp('implicit')
    for seed, name in enumerate(('one', 'two')):
        (folder / name).mkdir()
        small_run.write(folder / name, seed=seed)
    lines = ''.join(json.dumps(pair) + '\n' for pair in PAIRS)
    (folder / 'pairs.jsonl').write_text(lines)
    return folder


def rewards(folder, *words):
    parser = argparse.ArgumentParser()
    add_implicit_arguments(parser)
    data = ['--data', str(folder / 'pairs.jsonl')]
    return implicit_rewards(
        parser.parse_args([str(folder / 'one/model'), *data, *map(str, words)])
    )


def by_hand(folder, name, per_token=False):
    params, tokenizer = load_model(folder / name / 'model')[1], small_run.tokenizer()
    table = []
    for pair in PAIRS:
        prompt = tokenizer(pair['prompt'])['input_ids']
        row = []
        for key in ('chosen', 'rejected'):
            ids = [*tokenizer(pair[key])['input_ids'], 2]
            logps = np.asarray(tiny.sequence_logps(params, tiny.SPEC, prompt, ids))
            row.append(logps.mean() if per_token else logps.sum())
        table.append(row)
    return np.array(table)


def test_rewards_are_scaled_log_ratios(folder):
    found = rewards(folder, '--beta', 0.5, '--reference', folder / 'two/model')
    expected = 0.5 * (by_hand(folder, 'one') - by_hand(folder, 'two'))
    np.testing.assert_allclose(found.rewards, expected, atol=1e-4)
    assert found.about['prompts'] == 2
    assert found.about['beta'] == 0.5
    assert found.examples[1].origin.endswith('pairs.jsonl:2')


def test_without_a_reference_they_are_log_probs_by_sum_or_mean(folder):
    words = ['--beta', 2, '--reference', 'none', '--tokens']
    for tokens in ('sum', 'mean'):
        expected = 2 * by_hand(folder, 'one', per_token=tokens == 'mean')
        found = rewards(folder, *words, tokens).rewards
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ('words', 'message'),
    [(['--beta', 1], '--reference'), (['--reference', 'none'], 'beta')],
)
def test_what_only_a_run_knows_must_be_given(folder, words, message):
    with pytest.raises(ConfigError, match=message):
        rewards(folder, *words)
