"""The command that rates a run's implicit reward."""

import csv
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
    with (folder / 'out_points.csv').open() as file:  # for `compare`
        points = list(csv.DictReader(file))
    assert len(points) == 96
    assert [int(p['prompt']) for p in points[:5]] == [0, 0, 0, 0, 1]
    for name, values in (('rating', r_true), ('r_theta', r_theta)):
        written = np.reshape([float(p[name]) for p in points], (24, 4))
        np.testing.assert_allclose(written, values, atol=1e-4)
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


def with_config(folder, **changes):
    """Changes keys of the run's configuration, and gives back the old text."""
    file = folder / 'run/config.json'
    text = file.read_text()
    config = json.loads(text) | {k.replace('__', '.'): v for k, v in changes.items()}
    file.write_text(json.dumps(config))
    return text


def test_the_reward_is_that_of_the_loss(folder):
    summed = run(folder, '--reference', 'none', '--beta', '1')
    text = with_config(folder, loss__name='simpo', loss__beta=None)
    try:
        found = run(folder)
        assert found['per_token']
        assert found['reference'] == 'None'
        assert found['beta'] == 2.0  # SimPO's default
        words = ['--reference', 'none', '--beta', '2', '--tokens', 'mean']
        assert run(folder, *words)['metrics'] == found['metrics']
        assert found['metrics']['accuracy'] != summed['metrics']['accuracy']
        (folder / 'run/config.json').write_text(text)
        with_config(folder, loss__beta=None)
        assert run(folder)['beta'] == 0.1  # of DPO and EPA
    finally:
        (folder / 'run/config.json').write_text(text)


def test_prompts_are_rendered_as_in_the_run(folder):
    plain = run(folder)
    text = with_config(folder, data__max_response_tokens=3)
    try:
        cut = run(folder)
    finally:
        (folder / 'run/config.json').write_text(text)
    assert cut['truncated_responses'] > plain['truncated_responses'] == 0
    assert run(folder, '--max_response_tokens', '3') == cut


def test_without_ratings_there_is_no_distance_to_a_line(folder):
    out = folder / 'pairs_out.json'
    words = ['--data', str(folder / 'pairs.jsonl'), '--out', str(out)]
    intrinsic.main([str(folder / 'run'), *words])
    metrics = json.loads(out.read_text())['metrics']
    assert not (folder / 'pairs_out_points.csv').exists()
    assert 'slope1_error' not in metrics
    assert 'pearson' in metrics


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['model'], 'ConfigError: --reference: model is no run'),
        (['model', '--reference', 'model'], 'ConfigError: --beta'),
        (['run', '--reference', 'gone'], 'FormatError: gone: does not exist'),
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
