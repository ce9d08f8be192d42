"""The command that measures accuracy on pairs."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from epa_jax import reward_bench, sharding
from epa_jax.comparison.runs import measured, read_run
from epa_jax.evals.rewards import open_reward_model
from epa_jax.schema import MeshConfig
from epa_jax.train import train
from epa_jax.types import Message
from tests import small_run
from tests.evals import rewards_test


def said(role, text):
    return {'role': role, 'content': text}


RECORDS = [
    {'prompt': 'w1 w2', 'chosen': 'w3', 'rejected': 'w30', 'subset': 'mt-bench-easy'},
    {'prompt': 'w6', 'chosen': 'w7 w2', 'rejected': 'w38', 'subset': 'mt-bench-easy'},
    {'prompt': 'w6', 'chosen': 'w40', 'rejected': 'w8', 'subset': 'donotanswer'},
    {'prompt': 'w9', 'chosen': 'w7', 'rejected': 'w35 w41', 'subset': 'math-prm'},
    {'prompt': 'w4', 'chosen': 'w39', 'rejected': 'w5', 'subset': 'hep-go'},
    {'prompt': 'w3', 'chosen': 'w2 w2', 'rejected': 'w25 w27', 'subset': 'hep-go'},
    {
        'prompt': [said('user', 'w3'), said('assistant', 'w4'), said('user', 'w5')],
        'chosen': [said('assistant', 'w6')],
        'rejected': [said('assistant', 'w40')],
        'subset': 'my own',
    },
    {'prompt': 'w8', 'chosen': 'w1', 'rejected': 'w26'},
]


def write(path, records):
    path.write_text(''.join(json.dumps(record) + '\n' for record in records))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A run that learned to choose words of the first half, a reward model, and pairs."""
    folder = tmp_path_factory.mktemp('reward_bench')
    small_run.write(folder)
    train(small_run.config(folder, loss__beta=0.2))
    rewards_test.write(folder / 'judge')
    write(folder / 'bench.jsonl', RECORDS)
    return folder


def run(folder, model, *words, data='bench.jsonl'):
    data = ['--data', str(folder / data), '--details', str(folder / 'details.jsonl')]
    reward_bench.main([str(folder / model), *data, *words])
    lines = (folder / 'details.jsonl').read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_run_is_measured_by_what_it_learned(folder, capsys):
    details = run(folder, 'run', '--mesh_tensor', '2')
    right = [row['chosen'] > row['rejected'] for row in details]
    assert right == [True, True, False, True, False, True, True, True]
    found = json.loads((folder / 'run/evals/reward_bench.json').read_text())
    assert (found['reward'], found['beta'], found['ties_are']) == ('implicit', 0.2, 'wrong')
    assert {name: part['value'] for name, part in found['sections'].items()} == {
        'Chat': 1,
        'Safety': 0,
        'Reasoning': 0.75,  # (math-prm + hep-go) / 2, one pair against two
        'my own': 1,
        '(no subset)': 1,
    }
    assert found['score']['value'] == pytest.approx(1.75 / 3)
    assert found['score']['error'] is None  # some subsets have one pair
    printed = capsys.readouterr().out
    assert '8 pairs; 0 texts cut, 0 pairs dropped' in printed
    assert 'no pairs of Chat Hard' in printed
    shown = measured(read_run(folder / 'run'))
    assert shown['pairs: Reasoning'].value == 0.75
    assert shown['pairs: mean of sections'].value == found['score']['value']


def test_log_probs_alone_are_another_reward(folder):
    with_reference = run(folder, 'run')
    out = str(folder / 'free.json')
    free = run(folder, 'run', '--reference', 'none', '--tokens', 'mean', '--out', out)
    assert json.loads((folder / 'free.json').read_text())['reference'] == 'None'
    for row, other in zip(with_reference, free, strict=True):
        assert row['origin'] == other['origin']
        assert row['chosen'] != pytest.approx(other['chosen'])


def test_a_reward_model_reads_whole_conversations(folder, capsys):
    out = folder / 'judged.json'
    details = run(folder, 'judge', '--out', str(out), '--mesh_data', '2')
    model = open_reward_model(folder / 'judge', sharding.make_mesh(MeshConfig()))
    for row, record in zip(details, RECORDS, strict=True):
        for key in ('chosen', 'rejected'):
            turns, answer = record['prompt'], record[key]
            if isinstance(turns, str):
                turns, answer = [said('user', turns)], [said('assistant', answer)]
            talk = [Message(**turn) for turn in (*turns, *answer)]
            assert row[key] == pytest.approx(float(model([talk])[0]), rel=1e-4)
    found = json.loads(out.read_text())
    assert found['reward'] == 'model'
    easy = np.mean([row['chosen'] > row['rejected'] for row in details[:2]])
    assert found['subsets']['mt-bench-easy']['value'] == easy
    assert 'subset   donotanswer' in capsys.readouterr().out


@pytest.mark.parametrize('model', ['judge', 'run'])
def test_equal_rewards_are_wrong_and_said(folder, capsys, model):
    same = {'prompt': 'w1', 'chosen': 'w2', 'rejected': 'w2', 'subset': 'donotanswer'}
    write(folder / 'same.jsonl', [same, RECORDS[2]])
    out = folder / 'same.json'
    run(folder, model, '--out', str(out), data='same.jsonl')
    found = json.loads(out.read_text())
    assert found['sections']['Safety']['pairs'] == 2
    assert found['sections']['Safety']['ties'] == 1
    printed = capsys.readouterr().out
    assert '2 pairs; 0 texts cut, 0 pairs dropped' in printed
    assert 'ties count as wrong, as in RewardBench: 1 pairs' in printed


@pytest.mark.parametrize('model', ['judge', 'run'])
def test_lines_that_are_skipped_are_counted(folder, capsys, model):
    lines = (folder / 'bench.jsonl').read_text()
    (folder / 'bad.jsonl').write_text('no JSON\n' + lines)
    out = ['--out', str(folder / 'bad.json')]
    found = run(folder, model, '--bad_lines', 'skip', *out, data='bad.jsonl')
    assert len(found) == 8
    assert '8 pairs; 0 texts cut, 1 pairs dropped' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['judge', '--beta', '1'], 'ConfigError: --beta: is of implicit rewards'),
        (['judge', '--step', '4'], 'ConfigError: --step: is of implicit rewards'),
        (['model'], 'ConfigError: --reference: model is no run folder'),
        (['judge', '--data', 'no.jsonl'], 'DataError: no.jsonl: no such file'),
        (['judge', '--data', 'odd.jsonl'], 'DataError: odd.jsonl:1: subset: expected text'),
        (['judge', '--data', 'many.jsonl'], 'DataError: many.jsonl:1: 3 responses; exp'),
        (['broken'], 'ScoreError: bench.jsonl:1: the rewards are nan'),
    ],
)
def test_bad_input_is_one_message(folder, monkeypatch, words, message):
    monkeypatch.chdir(folder)
    write(folder / 'odd.jsonl', [RECORDS[0] | {'subset': 3}])
    write(folder / 'many.jsonl', [{'prompt': 'w', 'chosen': 'a', 'rejected': ['b', 'c']}])
    if words == ['broken']:
        rewards_test.write(folder / 'broken')
        file = folder / 'broken/model.safetensors'
        tensors = load_file(file)
        tensors['score.weight'] = np.full_like(tensors['score.weight'], np.nan)
        save_file(tensors, file, {'format': 'pt'})
    data = [] if '--data' in words else ['--data', 'bench.jsonl']
    monkeypatch.setattr('sys.argv', ['reward_bench', *words, *data])
    with pytest.raises(SystemExit) as stop:
        reward_bench.run_main()
    assert str(stop.value).startswith(message)
