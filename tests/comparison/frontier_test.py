"""Points of a frontier: estimates, table, figure."""

import csv
import dataclasses
import io
import json
import math

import numpy as np
import pytest

from epa_jax.comparison import frontier
from epa_jax.evals.bootstrap import Interval


def points():
    rng = np.random.default_rng(0)
    out = [frontier.point('reference', '', None, *(np.zeros((20, 3)),) * 3)]
    for label, folder, shift in (('dpo', 'a', 1), ('dpo', 'b', 1), ('epa', 'c', 2)):
        for step in (10, None):
            ratios = shift * (0.5 + 0.3 * rng.normal(size=(20, 3)))
            rewards = shift + rng.normal(size=(20, 3))
            lengths = rng.integers(1, 9, (20, 3))
            args = (ratios, rewards, lengths)
            out.append(frontier.point(label, folder, step, *args))
    return out


def test_a_point_is_means_over_samples():
    ratios = np.array([[0.1, 0.3], [0.2, -0.2]])
    rewards = np.array([[1.0, 2.0], [4.0, 5.0]])
    found = frontier.point('x', 'run', 3, ratios, rewards, np.array([[1, 2], [3, 6]]))
    assert found.kl['k1'].value == pytest.approx(0.1)
    assert found.kl['k2'].value == pytest.approx(np.mean(ratios**2) / 2)
    assert found.kl['k3'].value == pytest.approx(np.mean(np.exp(-ratios) - 1 + ratios))
    assert tuple(found.reward) == pytest.approx((3.0, 1.5, 4.5))
    assert (found.tokens, found.prompts, found.samples) == (3.0, 2, 2)


def test_points_are_read_as_they_were_saved():
    found = [points()[0], *[p for p in points() if p.folder == 'a']]
    short = dataclasses.replace(found[1], reward=Interval(1.0, math.nan, math.nan))
    saved = json.loads(json.dumps(frontier.to_json([*found, short], {'n': 4})))
    assert saved['measured'] == {'n': 4}
    again = frontier.from_json(saved, 'ipo', 'elsewhere/a')
    for before, after in zip(found, again, strict=False):
        own = {} if not before.folder else {'label': 'ipo', 'folder': 'elsewhere/a'}
        assert after == dataclasses.replace(before, **own)
    assert math.isnan(again[-1].reward.low)


def test_csv():
    rows = list(csv.DictReader(io.StringIO(frontier.as_csv(points()))))
    assert [(r['label'], r['run'], r['step']) for r in rows[:3]] == [
        ('reference', '', 'end'),
        ('dpo', 'a', '10'),
        ('dpo', 'a', 'end'),
    ]
    row = rows[1]
    assert float(row['kl_k3_low']) < float(row['kl_k3']) < float(row['kl_k3_high'])
    assert math.isclose(float(rows[0]['kl_k1']), 0)


def test_a_curve_a_run_and_a_colour_a_label():
    ax = frontier.draw(points()).axes[0]
    assert len(ax.containers) == 4
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        'reference',
        'dpo',
        'epa',
    ]
    colours = [bars.lines[0].get_color() for bars in ax.containers]
    assert colours[1] == colours[2] != colours[3]
    assert [len(bars.lines[0].get_xdata()) for bars in ax.containers] == [1, 2, 2, 2]
