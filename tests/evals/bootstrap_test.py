"""Intervals against theory, and how often they hold the truth."""

import math

import numpy as np
import pytest

from epa_jax.evals.bootstrap import mean_interval, ratio_interval


def test_the_interval_of_a_mean_is_near_that_of_the_normal_distribution():
    x = np.random.default_rng(0).normal(3.0, 2.0, 400)
    found = mean_interval(x)
    half = 1.96 * x.std(ddof=1) / 20
    assert found.value == pytest.approx(x.mean())
    assert found.low == pytest.approx(x.mean() - half, abs=0.03)
    assert found.high == pytest.approx(x.mean() + half, abs=0.03)
    assert str(found).startswith(f'{x.mean():.3f} [')


def test_it_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    held = 0
    for seed in range(200):
        found = mean_interval(rng.exponential(1.0, 60), seed, draws=300)
        held += found.low <= 1.0 <= found.high
    assert 0.87 < held / 200 < 0.99


def test_unknown_values_are_left_out():
    x = np.array([1.0, np.nan, 2.0, 3.0])
    assert mean_interval(x) == mean_interval(x[[0, 2, 3]])
    assert all(math.isnan(v) for v in mean_interval(np.full(3, np.nan)))


def test_a_ratio_weighs_prompts_by_what_they_count():
    totals, weights = np.array([2.0, 0.0, 9.0]), np.array([4.0, 0.0, 10.0])
    found = ratio_interval(totals, weights)
    assert found.value == pytest.approx(11 / 14)
    assert 0.5 <= found.low <= found.value <= found.high <= 0.9
