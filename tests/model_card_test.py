"""The card of an exported policy tells what was measured and nothing else."""

from epa_jax.config import flatten
from epa_jax.model_card import model_card
from tests import small_run


def test_the_card_holds_method_data_and_measurements(tmp_path):
    run = flatten(small_run.config(tmp_path))
    summary = {
        'eval_first': {'step': 0, 'eval/rewards/accuracies': 0.5},
        'eval_last': {'step': 6, 'eval/rewards/accuracies': 0.875},
        'hyperparameters': {'beta': 0.1},
        'steps': 6,
    }
    card = model_card(run, summary)
    assert '| rewards/accuracies | 0.5000 | 0.8750 |' in card
    assert str(tmp_path / 'pairs.jsonl') in card
    assert '"optim.lr": 0.02' in card


def test_a_run_without_evaluation_says_so(tmp_path):
    summary = {'eval_first': None, 'eval_last': None, 'hyperparameters': {}, 'steps': 1}
    card = model_card(flatten(small_run.config(tmp_path)), summary)
    assert 'No held-out examples were evaluated.' in card


def test_a_checkpoint_has_a_step_and_no_outcome(tmp_path):
    config = flatten(small_run.config(tmp_path, loss__beta=0.3))
    card = model_card(config, None, step=2)
    assert '2 steps of 4 prompts' in card
    assert "{'beta': 0.3}" in card
    assert 'A checkpoint of a run' in card
