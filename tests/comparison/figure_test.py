"""Curves of runs: which panels, which lines, which values."""

import numpy as np

from epa_jax.comparison.figure import draw
from epa_jax.comparison.runs import grouped, read_run
from tests.comparison import folders


def test_a_panel_a_metric_and_a_line_a_run(tmp_path):
    runs = [
        read_run(folders.write(tmp_path / 'a')),
        read_run(folders.write(tmp_path / 'b', seed=1)),
        read_run(folders.write(tmp_path / 'c', loss='ipo')),
    ]
    figure = draw(grouped(runs))
    shown = [ax for ax in figure.axes if ax.get_visible()]
    titles = [ax.get_title(loc='left') for ax in shown]
    assert titles == [
        'loss',
        'accuracy in training',
        'held-out accuracy',
        'held-out margin',
    ]
    assert [len(ax.lines) for ax in shown] == [3] * 4
    held_out = shown[2].lines[0]
    assert held_out.get_xdata().tolist() == [0, 40]
    assert held_out.get_ydata().tolist() == [0.5, 0.75]


def test_training_curves_are_running_means(tmp_path):
    run = read_run(folders.write(tmp_path / 'a', steps=60))
    line = draw(grouped([run])).axes[0].lines[0]
    loss = 1 / np.arange(1, 61)
    np.testing.assert_allclose(line.get_ydata()[30], loss[29:32].mean())
    assert len(line.get_ydata()) == 60


def test_runs_without_metrics_have_no_panel(tmp_path):
    folder = folders.write(tmp_path / 'a', finished=False)
    (folder / 'metrics.jsonl').unlink()
    figure = draw(grouped([read_run(folder)]))
    assert not any(ax.get_visible() for ax in figure.axes)
