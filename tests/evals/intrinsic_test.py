"""Metrics of rated responses against plain loops and closed forms."""

import itertools
import math

import numpy as np
import pytest

from epa_jax.evals.intrinsic import Rated, calibration_error, intrinsic


def rated(n=40, k=5, seed=0, noise=1.0, holes=True):
    rng = np.random.default_rng(seed)
    r_true = rng.normal(size=(n, k))
    mask = rng.random((n, k)) < 0.8 if holes else np.ones((n, k), bool)
    return Rated(
        r_true + noise * rng.normal(size=(n, k)), r_true, rng.integers(1, 50, (n, k)), mask
    )


def by_prompt(data, metric):
    values = []
    for n in range(len(data.mask)):
        own = np.flatnonzero(data.mask[n])
        if len(own) >= 2:
            parts = (data.r_theta[n, own], data.r_true[n, own], data.lengths[n, own])
            values.append(metric(*parts))
    return np.mean(values)


def accuracy(r, true, _):
    pairs = [(i, j) for i, j in itertools.permutations(range(len(r)), 2)]
    return np.mean([r[i] > r[j] for i, j in pairs if true[i] > true[j]])


def margin(r, true, _):
    best = np.argmax(true)
    return r[best] - np.delete(r, best).mean()


def test_means_over_prompts():
    data = rated()
    found = intrinsic(data)
    expected = {
        'pearson': by_prompt(data, lambda r, t, _: np.corrcoef(r, t)[0, 1]),
        'slope1_error': by_prompt(data, lambda r, t, _: np.var(r - t)),
        'slope1_root': by_prompt(data, lambda r, t, _: np.std(r - t)),
        'accuracy': by_prompt(data, accuracy),
        'margin': by_prompt(data, margin),
        'longer_best': by_prompt(data, lambda r, _, n: n[np.argmax(r)] == n.max()),
    }
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value), name
        assert found[name].low < value < found[name].high


def test_length_bias_is_of_the_reward_and_of_the_data():
    data = rated(holes=False)
    biased = Rated(-2.0 * data.lengths, data.r_true, data.lengths, data.mask)
    found = intrinsic(biased)
    assert found['length_correlation'].value == pytest.approx(-1)
    assert abs(found['length_correlation_true'].value) < 0.3
    assert found['longer_best'].value < 0.1


def test_ties_count_one_half():
    data = rated()
    flat = Rated(np.zeros(data.mask.shape), data.r_true, data.lengths, data.mask)
    found = intrinsic(flat)
    assert found['accuracy'].value == 0.5
    assert found['calibration_error'].value == 0
    assert math.isnan(found['pearson'].value)


def test_labels_drawn_from_the_reward_are_calibrated_and_doubled_rewards_are_not():
    rng = np.random.default_rng(0)
    r = rng.normal(size=(20000, 2))
    first = rng.random(20000) < 1 / (1 + np.exp(r[:, 1] - r[:, 0]))
    true = np.stack([first, ~first], axis=1).astype(float)
    lengths = np.ones(r.shape, int)
    mask = np.ones(r.shape, bool)
    assert calibration_error(Rated(r, true, lengths, mask)).value < 0.02
    found = calibration_error(Rated(3 * r, true, lengths, mask))
    assert found.value > 0.1
    assert found.low > 0.08
