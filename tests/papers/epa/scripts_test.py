"""Fast versions of the scripts that train: they run, and their tables add up."""

import csv

import jax
import numpy as np
import pytest

from epa_jax.theory.study import Plan
from experiments.papers import common
from experiments.papers.epa import figure1, figure3, figure4, figure5, runs, table1

FAST = Plan(batch=8, steps=10, measurements=2, lr=1e-3)


@pytest.fixture(scope='module')
def setting():
    return runs.make_setting(2, rows=4, fit_steps=60)


@pytest.fixture(scope='module')
def sweep(setting):
    return figure3.sweep(setting, FAST, (0.5,))


def test_figure1(setting, tmp_path):
    logps = {
        name: runs.run(setting, runs.METHODS[name], FAST)[1]
        for name in ('DPO', 'EPA 1:1:2')
    }
    rows = figure1.gaps(setting, logps['DPO'], 'DPO')
    assert [row['seed'] for row in rows] == [0, 1]
    world = setting.world(0)
    perfect = np.stack([np.asarray(setting.world(s).log_optimum) for s in (0, 1)])
    for row in figure1.gaps(setting, perfect, 'x'):
        assert row['worst_response_gap'] == pytest.approx(0, abs=1e-3)
    figure1.draw(world, {k: v[0] for k, v in logps.items()}, tmp_path / 'x.png')
    assert (tmp_path / 'x.png').stat().st_size > 10_000


def test_figure3(setting, sweep, tmp_path):
    assert len(sweep) == 2 * 2 * 3
    frontier = figure3.exact_frontier(setting, points=12)
    kl, reward = (np.array([row[key] for row in frontier]) for key in ('kl', 'reward'))
    assert np.all(np.diff(kl) < 0)  # a higher price buys less
    assert np.all(np.diff(reward) < 0)
    figure3.draw(sweep, frontier, 0.5, tmp_path / 'x.png')
    assert (tmp_path / 'x.png').stat().st_size > 10_000


def test_no_policy_is_above_the_exact_frontier(setting):
    history, _ = runs.run(setting, runs.METHODS['DPO'], FAST)
    rows = [
        {'method': name, 'seed': s, 'kl': 0.5, 'reward': float(history.reward[s, -1])}
        for name in figure3.DRAWN
        for s in range(2)
    ]
    moved = figure3.shortfall(rows, setting)
    assert all(row['shortfall'] > 0 for row in moved)


def test_figure4(setting, tmp_path):
    rows = figure4.sweep(setting, FAST, (1.0,))
    assert len(rows) == 2 * 2
    figure4.draw(rows, tmp_path / 'x.png')
    assert (tmp_path / 'x.png').stat().st_size > 10_000


def test_figure5(tmp_path):
    with jax.enable_x64(True):
        found = figure5.surface(17)
    middle = 8
    assert np.ptp(found['DPO'], axis=1).max() < 1e-9  # flat along the unseen response
    assert np.unravel_index(np.argmin(found['IPM']), (17, 17)) == (middle, middle)
    assert np.all(np.diff(found['EPA 1:1:2'][middle]) > 0)  # least at minus infinity
    assert len(figure5.lines(found)) == 2 * 17
    figure5.draw(found, tmp_path / 'x.png')


def test_table1(setting, monkeypatch, tmp_path):
    monkeypatch.setattr(table1, 'make_setting', lambda seeds, topical: setting)
    methods = [runs.METHODS[name] for name in ('DPO', 'EPA 1:3:4')]
    rows = table1.rows_of('topical', 2, FAST, methods)
    summary = table1.summary(rows)
    assert [line['method'] for line in summary] == ['DPO', 'EPA 1:3:4']
    assert summary[0]['pearson_less_dpo'] == 0
    epa = [row['pearson'] for row in rows if row['method'] == 'EPA 1:3:4']
    assert summary[1]['pearson'] == pytest.approx(np.mean(epa))
    common.write_csv(tmp_path / 'x.csv', summary)
    with (tmp_path / 'x.csv').open() as file:
        assert len(list(csv.DictReader(file))) == 2


def test_the_interval_is_student_s():
    mean, half = common.interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert half == pytest.approx(4.303 / np.sqrt(3), rel=1e-3)


def test_methods_are_those_of_the_table():
    names = ['DPO', 'IPO', 'KTO', 'NCA', 'PL-DPO']
    names += [f'EPA 1:{k}' for k in ('1:0', '1:1', '1:2', '1:4', '1:8', '3:0', '3:4')]
    assert list(runs.METHODS) == [*names, 'EPA 1:1:2, weight 0.1']
