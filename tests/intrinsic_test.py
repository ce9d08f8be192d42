"""The command that rates a run's implicit reward."""

import json
import random

import numpy as np
import pytest

from epa_jax import intrinsic
from epa_jax.evals.linearity import linearity
from epa_jax.formats.load import load_model
from epa_jax.train import train
from tests import small_run, tiny


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A run, and rated responses some of which are of the kind that it learned."""
    folder = tmp_path_factory.mktemp('intrinsic')
    small_run.write(folder)
    train(small_run.config(folder, loss__beta=0.2))
    rng = random.Random(1)

    def text(words):
        return ' '.join(rng.choices(words, k=rng.randint(1, 6)))

    with (folder / 'rated.jsonl').open('w') as file:
        for _ in range(24):
            good = [{'text': text(small_run.WORDS[:22]), 'rating': 0.9} for _ in range(2)]
            bad = [{'text': text(small_run.WORDS[22:]), 'rating': 0.2} for _ in range(2)]
            record = {'prompt': text(small_run.WORDS), 'responses': good + bad}
            file.write(json.dumps(record) + '\n')
    return folder


def run(folder, *words, data='rated.jsonl'):
    out = folder / 'out.json'
    data = ['--data', str(folder / data), '--out', str(out)]
    intrinsic.main([str(folder / 'run'), *data, *words])
    return json.loads(out.read_text())


def test_what_was_learned_is_seen(folder, capsys):
    found = run(folder)
    assert found['prompts'] == 24
    assert found['responses'] == 96
    assert found['beta'] == 0.2
    assert found['metrics']['accuracy'][0] > 0.8
    value, low, high = found['metrics']['pearson']
    assert 0.5 < low < value < high
    assert 'length_correlation_true' in capsys.readouterr().out


def test_rewards_are_beta_times_log_ratios_one_response_at_a_time(folder):
    tokenizer = small_run.tokenizer()
    trained = load_model(folder / 'run/export')[1]
    start = load_model(folder / 'model')[1]
    r_theta, r_true = [], []
    for line in (folder / 'rated.jsonl').read_text().splitlines():
        record = json.loads(line)
        prompt = tokenizer(record['prompt'])['input_ids']
        rewards = []
        for response in record['responses']:
            ids = [*tokenizer(response['text'])['input_ids'], 2]
            policy, reference = (
                tiny.sequence_logps(p, tiny.SPEC, prompt, ids).sum()
                for p in (trained, start)
            )
            rewards.append(0.2 * float(policy - reference))
        r_theta.append(rewards)
        r_true.append([r['rating'] for r in record['responses']])
    expected = linearity(np.array(r_theta), np.array(r_true))
    metrics = run(folder, '--mesh_tensor', '2')['metrics']
    assert metrics['pearson'][0] == pytest.approx(expected.mean_pearson, abs=1e-3)
    error = expected.mean_slope1_error
    assert metrics['slope1_error'][0] == pytest.approx(error, rel=1e-3)


def test_ratings_may_be_probabilities(folder):
    plain, logit = run(folder), run(folder, '--ratings', 'logit')
    assert logit['metrics']['accuracy'] == plain['metrics']['accuracy']
    assert logit['metrics']['slope1_error'] != plain['metrics']['slope1_error']
    assert run(folder, '--beta', '0.4')['metrics']['margin'][0] == pytest.approx(
        2 * plain['metrics']['margin'][0], rel=1e-4
    )


def test_pairs_have_an_order_alone(folder):
    found = run(folder, '--limit', '10', data='pairs.jsonl')
    assert found['prompts'] == 10
    assert found['metrics']['accuracy'][0] > 0.8


def test_the_start_has_no_reward(folder):
    words = ['--reference', str(folder / 'run/export')]
    assert run(folder, *words)['metrics']['accuracy'][0] == 0.5


def test_a_default_beta_is_read_from_the_summary(folder):
    config = folder / 'run/config.json'
    text = config.read_text()
    config.write_text(text.replace('"loss.beta": 0.2', '"loss.beta": null'))
    try:
        assert run(folder)['beta'] == 0.2
    finally:
        config.write_text(text)


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['model'], 'ConfigError: --reference: model is no run folder'),
        (['model', '--reference', 'model'], 'ConfigError: --beta'),
        (['run', '--reference', 'none'], 'FormatError: none: does not exist'),
        (
            ['run', '--ratings', 'logit', '--data', 'ten.jsonl'],
            'ConfigError: ratings=logit',
        ),
    ],
)
def test_bad_input_is_one_message(folder, monkeypatch, words, message):
    monkeypatch.chdir(folder)
    text = (folder / 'rated.jsonl').read_text()
    (folder / 'ten.jsonl').write_text(text.replace('0.9', '9'))
    monkeypatch.setattr('sys.argv', ['x', '--data', 'rated.jsonl', *words])
    with pytest.raises(SystemExit) as stop:
        intrinsic.run_main()
    assert str(stop.value).startswith(message)
