"""Whole runs with losses that ask more of the step than EPA does."""

import json

import jax
import numpy as np
import pytest

from epa_jax.config import ConfigError
from epa_jax.loop import Loop
from epa_jax.losses import LOSSES, LossDef
from epa_jax.losses.definition import POSITIVE
from epa_jax.losses.pairs import mean_over_pairs
from epa_jax.train import train
from tests import small_run

QUICK = {'steps': 6, 'export': False, 'data__n_weak': 1}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs')
    small_run.write(folder)
    return folder


def test_a_coupled_loss_learns_and_compiles_once(folder):
    result = train(
        small_run.config(
            folder,
            'kto',
            loss__name='kto',
            reference__mode='in_step',
            **QUICK,
        )
    )
    before, after = result.summary['eval_first'], result.summary['eval_last']
    assert before['eval/loss'] == pytest.approx(0.5, abs=1e-5)  # all at the baseline
    assert after['eval/loss'] < before['eval/loss'] - 0.02
    assert after['eval/rewards/margins'] > 0.2
    traces = {'measure': 1, 'table': 1, 'couple': 1, 'pull': 1, 'update': 1}
    assert result.summary['traces'] == traces


def test_what_a_loss_carries_survives_a_restart(folder, monkeypatch):
    """Stopped after 3 of 6 steps and resumed, `bco` ends bit for bit as undisturbed."""
    values = QUICK | {'loss__name': 'bco', 'checkpoint__every': 3}
    whole = train(small_run.config(folder, 'whole', **values))
    original = Loop._save

    def save_then_stop(self, batches):
        original(self, batches)
        if self.step == 3:
            raise KeyboardInterrupt

    run = small_run.config(folder, 'cut', **values)
    monkeypatch.setattr(Loop, '_save', save_then_stop)
    with pytest.raises(KeyboardInterrupt):
        train(run)
    monkeypatch.undo()
    resumed = train(run)
    for a, b in zip(
        jax.tree.leaves(whole.params), jax.tree.leaves(resumed.params), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert resumed.summary['eval_last'] == whole.summary['eval_last']


def test_rated_losses_refuse_pairs_before_training(folder):
    run = small_run.config(folder, 'rated', loss__name='infonca', **QUICK)
    with pytest.raises(ConfigError, match=r"'infonca' needs a rating.*pairs\.jsonl:\d+"):
        train(run)
    assert not (folder / 'rated').exists()


def test_rated_losses_train_on_ratings(folder, tmp_path):
    path = tmp_path / 'rated.jsonl'
    with path.open('w') as file:
        for i in range(24):
            texts = ['w1 w2', 'w30', 'w5 w40 w41', 'w30 w31 w32'][: 2 + i % 3]
            responses = [{'text': text, 'rating': 5.0 - k} for k, text in enumerate(texts)]
            file.write(json.dumps({'prompt': f'w{i}', 'responses': responses}) + '\n')
    values = QUICK | {'data__n_strong': 3, 'data__n_weak': 0, 'data__train': str(path)}
    run = small_run.config(
        folder, 'pl', loss__name='0.5*pl_dpo + rpo_sq', loss__pairs='all', **values
    )
    summary = train(run).summary
    assert summary['eval_last']['eval/loss'] < summary['eval_first']['eval/loss'] - 0.05


def squared(table, *, beta=0.1):
    """(beta * (a - b) - 1)^2: IPO's with its target at 1 / beta."""
    return mean_over_pairs(
        table, 'best_rest', lambda good, bad: (beta * (good.ratio - bad.ratio) - 1) ** 2
    )


def test_a_run_takes_a_loss_of_one_s_own(folder):
    """At half the beta it is IPO's over beta^2, whose slopes AdamW cannot tell apart."""
    mine = LossDef(squared, 'squared', 'none', {'beta': POSITIVE})
    values = QUICK | {'optim__clip_norm': 0.0}
    run = small_run.config(folder, 'own', loss__name='squared', loss__beta=0.2, **values)
    with pytest.raises(ConfigError, match="'squared': no such loss"):
        train(run)
    assert not (folder / 'own').exists()
    found = train(run, {**LOSSES, 'squared': mine}).summary
    run = small_run.config(folder, 'ipo', loss__name='ipo', loss__beta=0.1, **values)
    known = train(run).summary
    for when in ('eval_first', 'eval_last'):
        ratio = found[when]['eval/loss'] / known[when]['eval/loss']
        assert ratio == pytest.approx(0.2**2, rel=1e-3)
