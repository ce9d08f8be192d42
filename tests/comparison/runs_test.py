"""What is read of runs, and how they are grouped."""

import json
import math

import numpy as np
import pytest
import scipy.stats

from epa_jax.comparison.runs import grouped, measured, read_run
from epa_jax.config import ConfigError
from tests.comparison import folders


def test_a_finished_run(tmp_path):
    run = read_run(folders.write(tmp_path / 'run'))
    found = measured(run)
    half = 1.96 * math.sqrt(0.75 * 0.25 / 100)
    value, low, high = found['rewards/accuracies']
    assert (value, low, high) == pytest.approx((0.75, 0.75 - half, 0.75 + half))
    assert found['rewards/margins'].value == 0.25
    assert math.isnan(found['rewards/margins'].low)
    assert found['seconds'].value == 12
    assert run.curve('eval/rewards/accuracies') == ([0, 40], [0.5, 0.75])
    assert run.curve('loss')[0] == list(range(1, 41))


def test_an_unfinished_run_has_curves_and_no_measurements(tmp_path):
    run = read_run(folders.write(tmp_path / 'run', finished=False))
    assert measured(run) == {}
    assert run.curve('loss')[1][0] == 1


def test_evaluations_in_the_folder_are_measurements(tmp_path):
    folder = folders.write(tmp_path / 'run')
    (folder / 'evals').mkdir()
    tasks = {
        'arc': {'accuracy': 0.4, 'accuracy_error': 0.05},
        'lambada': {'accuracy': 0.2, 'accuracy_error': 0.01, 'perplexity': 40.0},
    }
    (folder / 'evals/tasks.json').write_text(json.dumps({'tasks': tasks}))
    metrics = {'pearson': [0.5, 0.4, 0.6], 'accuracy': [None, None, None]}
    (folder / 'evals/intrinsic.json').write_text(json.dumps({'metrics': metrics}))
    found = measured(read_run(folder))
    assert tuple(found['arc: accuracy']) == pytest.approx((0.4, 0.302, 0.498))
    assert found['lambada: perplexity'].value == 40
    assert tuple(found['r_theta: pearson']) == (0.5, 0.4, 0.6)
    assert math.isnan(found['r_theta: accuracy'].value)


def test_what_one_question_or_one_pair_says_has_no_interval(tmp_path):
    folder = folders.write(tmp_path / 'run')
    part = {'value': 0.5, 'error': None}
    files = {
        'tasks': {'tasks': {'a': {'accuracy': 1.0, 'accuracy_error': None}}},
        'lm_eval': {
            'results': {
                'b': {'alias': 'b', 'f1,strict': 0.3, 'f1_stderr,strict': 'N/A'},
                'c': {'acc,none': 0.4, 'acc_stderr,none': 0.05},
            }
        },
        'reward_bench': {'sections': {'Chat': part}, 'score': part},
    }
    (folder / 'evals').mkdir()
    for name, content in files.items():
        (folder / f'evals/{name}.json').write_text(json.dumps(content))
    found = measured(read_run(folder))
    assert tuple(found['c: acc']) == pytest.approx((0.4, 0.302, 0.498))
    single = ('a: accuracy', 'b: f1 (strict)', 'pairs: Chat', 'pairs: mean of sections')
    assert [found[name].value for name in single] == [1, 0.3, 0.5, 0.5]
    assert all(math.isnan(found[name].low) for name in single)
    assert 'b: alias' not in found


def test_runs_that_differ_in_their_seed_are_one_group(tmp_path):
    values = [0.7, 0.75, 0.83]
    runs = [
        read_run(folders.write(tmp_path / f'dpo{s}', seed=s, accuracy=a))
        for s, a in enumerate(values)
    ]
    other = folders.write(tmp_path / 'epa', loss='epa', data__n_weak=2)
    groups = grouped([runs[0], read_run(other), *runs[1:]])
    assert [g.label for g in groups] == ['dpo data.n_weak=0', 'epa data.n_weak=2']
    assert [len(g.runs) for g in groups] == [3, 1]
    value, low, high = groups[0].measured()['rewards/accuracies']
    t = scipy.stats.t.interval(0.95, 2, np.mean(values), scipy.stats.sem(values))
    assert (value, low, high) == pytest.approx((np.mean(values), *t))


def test_alone_a_run_is_named_by_its_folder(tmp_path):
    (group,) = grouped([read_run(folders.write(tmp_path / 'only'))])
    assert group.label == 'only'


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r'none.config\.json: cannot be read'):
        read_run(tmp_path / 'none')
    folder = folders.write(tmp_path / 'run')
    (folder / 'metrics.jsonl').write_text('{"step": 1}\n{"st')
    with pytest.raises(ConfigError, match=r'metrics\.jsonl:2: not JSON'):
        read_run(folder)
    (folder / 'config.json').write_text('{"model_type": "llama"}')
    with pytest.raises(ConfigError, match=r'is not that of a run'):
        read_run(folder)
    run = read_run(folders.write(tmp_path / 'twice'))
    with pytest.raises(ConfigError, match='named twice'):
        grouped([run, run])
