"""The command that rewards responses."""

import json

import numpy as np
import pytest

from epa_jax import reward, sharding
from epa_jax.data.layouts import to_example
from epa_jax.evals.rewards import open_reward_model
from epa_jax.schema import MeshConfig
from epa_jax.types import Message
from tests.evals import rewards_test

ROWS = [
    {'prompt': 'w1 w2', 'responses': ['w3', 'w4 w5'], 'tokens': [1, 2]},
    {'prompt': [{'role': 'user', 'content': 'w6'}], 'responses': ['w7']},
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('reward')
    rewards_test.write(folder / 'model')
    text = ''.join(json.dumps(row) + '\n' for row in ROWS)
    (folder / 'responses.jsonl').write_text(text)
    return folder


def test_every_response_is_rewarded_in_its_place(folder, capsys):
    out = folder / 'out' / 'rewards.jsonl'
    reward.main([str(folder / 'model'), str(folder / 'responses.jsonl'), '--out', str(out)])
    found = [json.loads(line) for line in out.read_text().splitlines()]
    model = open_reward_model(folder / 'model', sharding.make_mesh(MeshConfig()))
    for row, source in zip(found, ROWS, strict=True):
        assert {k: row[k] for k in source} == source
        prompt = 'w1 w2' if source is ROWS[0] else 'w6'
        for value, text in zip(row['rewards'], source['responses'], strict=True):
            talk = [Message('user', prompt), Message('assistant', text)]
            assert value == pytest.approx(float(model([talk])[0]), rel=1e-4)
    printed = capsys.readouterr().out
    means = [np.mean(row['rewards']) for row in found]
    assert '2 prompts, 3 responses' in printed
    assert f'mean reward {np.mean(means):.3f} [' in printed
    example = to_example(found[0], 'auto', 'here')  # rated data, to train or compare on
    assert example.ratings == pytest.approx(found[0]['rewards'])
    assert example.responses == tuple(ROWS[0]['responses'])


def test_any_function_of_conversations_is_a_reward():
    def words(conversations):
        return np.array([len(c[-1].content.split()) for c in conversations])

    found = reward.add_rewards(ROWS, words)
    assert [row['rewards'] for row in found] == [[1.0, 2.0], [1.0]]


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('{"prompt": "w1"}', 'bad.jsonl:1: responses: expected a list of texts'),
        ('{"prompt": "w1", "responses": []}', 'expected a list of texts'),
        ('{"responses": ["w1"]}', 'expected text or messages'),
        ('[1]', 'expected an object'),
    ],
)
def test_bad_input_is_one_message(folder, monkeypatch, line, message):
    (folder / 'bad.jsonl').write_text(line + '\n')
    words = [str(folder / 'model'), str(folder / 'bad.jsonl')]
    monkeypatch.setattr('sys.argv', ['reward', *words])
    with pytest.raises(SystemExit) as stop:
        reward.run_main()
    assert message in str(stop.value)
    assert str(stop.value).startswith('DataError: ')
