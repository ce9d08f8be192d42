"""Points of what runs reached: which panels, and what is in them."""

import csv
import json

import numpy as np
import pytest

from epa_jax.comparison import frontier
from epa_jax.comparison.runs import grouped, read_rewards, read_run
from epa_jax.comparison.scatter import draw
from epa_jax.config import ConfigError
from tests.comparison import folders


def write_frontier(folder, reward='r', kl=1.0):
    rng = np.random.default_rng(0)
    zero = np.zeros((10, 2))
    points = [frontier.point('reference', '', None, zero, zero, zero)]
    for step in (5, None):
        ratios = kl + 0.1 * rng.normal(size=(10, 2))
        points.append(frontier.point('x', 'y', step, ratios, ratios + 1, zero + 3))
    (folder / 'evals').mkdir(exist_ok=True)
    saved = frontier.to_json(points, {'reward': reward})
    (folder / 'evals/frontier.json').write_text(json.dumps(saved))


def write_rewards(folder, rows):
    (folder / 'evals').mkdir(exist_ok=True)
    with (folder / 'evals/intrinsic_points.csv').open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['prompt', 'response', 'rating', 'r_theta', 'length'])
        writer.writerows(rows)


def write_tasks(folder, *accuracies):
    (folder / 'evals').mkdir(exist_ok=True)
    tasks = {
        f't{i}': {'accuracy': a, 'accuracy_error': 0.01} for i, a in enumerate(accuracies)
    }
    (folder / 'evals/tasks.json').write_text(json.dumps({'tasks': tasks}))


def shown(figure):
    return [ax for ax in figure.axes if ax.get_visible()]


def test_runs_without_evaluations_have_no_figure(tmp_path):
    assert draw(grouped([read_run(folders.write(tmp_path / 'a'))])) is None


def test_frontiers_are_apart_where_their_rewards_are(tmp_path):
    for name, loss, reward in (('a', 'dpo', 'r'), ('b', 'ipo', 'r'), ('c', 'mpo', 's')):
        write_frontier(folders.write(tmp_path / name, loss=loss), reward)
    axes = shown(draw(grouped([read_run(tmp_path / name) for name in 'abc'])))
    assert [ax.get_title(loc='left') for ax in axes] == ['reward: r', 'reward: s']
    legends = [[t.get_text() for t in ax.get_legend().get_texts()] for ax in axes]
    assert legends == [['reference', 'dpo', 'ipo'], ['reference', 'mpo']]
    assert len(axes[0].containers) == 3  # the reference is drawn once


def test_rewards_are_centred_by_prompt(tmp_path):
    folder = folders.write(tmp_path / 'a')
    rows = [
        (0, 0, 1.0, 5.0, 3),
        (0, 1, 3.0, 9.0, 3),
        (2, 0, 7.0, 1.0, 3),
        (2, 1, 7.0, 1.5, 3),
    ]
    write_rewards(folder, rows)
    np.testing.assert_allclose(read_rewards(folder), [[-1, 1, 0, 0], [-2, 2, -0.25, 0.25]])
    (ax,) = shown(draw(grouped([read_run(folder)])))
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [-2, 2, -0.25, 0.25])
    slope = ax.lines[1]
    assert slope.get_xdata().tolist() == slope.get_ydata().tolist() == [-1, 1]
    (folder / 'evals/intrinsic_points.csv').write_text('prompt,rating\n1,x\n')
    with pytest.raises(ConfigError, match=r'intrinsic_points.csv: cannot be read'):
        read_rewards(folder)


def test_tasks_against_preferences_of_several_runs(tmp_path):
    for name, seed, accuracy in (('a', 0, 0.75), ('b', 1, 0.7)):
        folder = folders.write(tmp_path / name, seed=seed, accuracy=accuracy)
        write_tasks(folder, 0.5, accuracy)
    other = folders.write(tmp_path / 'c', loss='ipo', accuracy=0.6)
    write_tasks(other, 0.2, 0.4)
    (ax,) = shown(draw(grouped([read_run(tmp_path / name) for name in 'abc'])))
    assert ax.lines[0].get_xdata().tolist() == [0.75, 0.7]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0.625, 0.6])
    np.testing.assert_allclose(ax.lines[1].get_ydata(), [0.3])
