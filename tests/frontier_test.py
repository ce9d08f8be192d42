"""The command that draws reward against KL."""

import csv
import json

import numpy as np
import pytest

from epa_jax import frontier
from epa_jax.comparison import scatter
from epa_jax.comparison.runs import grouped, read_run
from epa_jax.train import train
from tests import small_run
from tests.evals import rewards_test

GOOD = set(small_run.WORDS[:22])


def share_of_good_words(conversations):
    """What the pairs of `small_run` prefer."""
    words = [conversation[-1].content.split() for conversation in conversations]
    return np.array([np.mean([w in GOOD for w in ws]) if ws else 0.5 for ws in words])


def broken(conversations):
    return np.full(len(conversations), np.nan)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('frontier')
    small_run.write(folder)
    changes = {'checkpoint__every': 8, 'checkpoint__keep_last': 2}
    train(small_run.config(folder, 'one', **changes))
    prompts = [{'prompt': f'w{i} w{i + 1}'} for i in range(16)]
    (folder / 'prompts.jsonl').write_text(''.join(json.dumps(p) + '\n' for p in prompts))
    return folder


def run(folder, *words):
    out = folder / 'out'
    own = ['--prompts', str(folder / 'prompts.jsonl'), '--out', str(out)]
    sizes = ['--max_new_tokens', '8', '--n', '4']
    frontier.main([str(folder / 'one'), *own, *sizes, *words])
    with (out / 'frontier.csv').open() as file:
        return list(csv.DictReader(file))


def test_reward_and_kl_rise_with_training(folder, capsys):
    words = ['--reward', 'tests.frontier_test:share_of_good_words', '--checkpoints']
    rows = run(folder, *words)
    assert [row['step'] for row in rows] == ['end', '8', '16']
    assert [row['label'] for row in rows] == ['reference', 'one', 'one']
    rewards = [float(row['reward']) for row in rows]
    kls = [float(row['kl_k3']) for row in rows]
    assert rewards[0] < rewards[2]
    assert kls[0] == 0
    assert 0 < kls[1] < kls[2]
    assert float(rows[2]['kl_k1']) == pytest.approx(kls[2], rel=0.5)
    assert (folder / 'out/frontier.png').stat().st_size > 10_000
    assert 'step 16: KL ' in capsys.readouterr().out
    saved = json.loads((folder / 'one/evals/frontier.json').read_text())
    assert saved['measured']['reward'] == 'tests.frontier_test:share_of_good_words'
    assert [p['step'] for p in saved['points']] == [None, 8, 16]
    assert saved['points'][2]['reward'][0] == pytest.approx(rewards[2], rel=1e-4)
    assert scatter.draw(grouped([read_run(folder / 'one')])) is not None


def test_a_reward_model_serves(folder):
    model = rewards_test.write(folder / 'reward')
    rows = run(folder, '--reward', str(model), '--limit', '3')
    assert [row['step'] for row in rows] == ['end', 'end']
    assert {row['prompts'] for row in rows} == {'3'}
    assert all(np.isfinite(float(row['reward'])) for row in rows)


@pytest.mark.parametrize(
    ('reward', 'message'),
    [
        ('tests.frontier_test:broken', 'ConfigError: --reward tests.frontier_test:broken'),
        ('tests.frontier_test:gone', 'ConfigError: --reward tests.frontier_test:gone'),
        ('tests.gone:f', 'ConfigError: --reward tests.gone:f'),
        ('gone', 'FormatError: gone'),
    ],
)
def test_bad_rewards_are_one_message(folder, monkeypatch, reward, message):
    words = ['--prompts', str(folder / 'prompts.jsonl'), '--out', str(folder / 'x')]
    words += ['--max_new_tokens', '4', '--limit', '2', '--reward', reward]
    monkeypatch.setattr('sys.argv', ['frontier', str(folder / 'one'), *words])
    with pytest.raises(SystemExit) as stop:
        frontier.run_main()
    assert str(stop.value).startswith(message)
