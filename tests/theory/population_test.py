"""Populations against sums over ordered draws, and against counted simulations."""

import functools
import itertools

import jax
import numpy as np
import pytest

from epa_jax.losses.energy import epa
from epa_jax.losses.pairwise import dpo
from epa_jax.theory import population
from epa_jax.theory.worlds import random_world
from epa_jax.types import Role

BETA = 0.7


pytestmark = pytest.mark.usefixtures('float64')


@pytest.fixture
def world():
    return random_world(2, 4, BETA, 3)


@pytest.fixture
def logps():
    return np.asarray(jax.nn.log_softmax(np.random.default_rng(1).normal(size=(2, 4)), 1))


@pytest.fixture
def log_q():
    return np.asarray(jax.nn.log_softmax(np.random.default_rng(2).normal(size=(2, 4)), 1))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_pairs_are_bradley_terry(world, logps):
    proposals = population.independent_pairs(world.log_ref)
    pairs = population.bradley_terry_pairs(world, proposals)
    found = pairs.loss(functools.partial(dpo, beta=BETA), logps, world.log_ref)
    r, total = world.r_theta(logps), 0.0
    for n in range(2):
        distinct = 1 - np.trace(proposals[n])
        for i, j in itertools.permutations(range(4), 2):
            shown = proposals[n, i, j] / distinct / 2  # of two prompts
            for w, l in ((i, j), (j, i)):
                wins = sigmoid(world.reward[n, w] - world.reward[n, l])
                total += shown * wins * -np.log(sigmoid(r[n, w] - r[n, l]))
    assert found == pytest.approx(total)
    assert pairs.weights.sum() == pytest.approx(1)


def test_deterministic_labels_follow_the_reward(world):
    proposals = population.independent_pairs(world.log_ref)
    pairs = population.bradley_terry_pairs(world, proposals, deterministic=True)
    won, lost = (world.reward[pairs.prompts, pairs.responses[:, side]] for side in (0, 1))
    assert np.all(won > lost)
    assert len(pairs.weights) == 2 * 6


def test_pairs_that_are_never_shown_are_no_rows(world):
    proposals = np.zeros((2, 4, 4))
    proposals[:, 0, 1] = proposals[:, 1, 0] = 0.5
    pairs = population.bradley_terry_pairs(world, proposals)
    assert set(map(tuple, pairs.responses.tolist())) == {(0, 1), (1, 0)}


def test_best_of_all_is_the_softmax_of_rewards(world):
    rows = population.best_of_all(world)
    expected = np.exp(world.reward) / np.exp(world.reward).sum(axis=1, keepdims=True) / 2
    np.testing.assert_allclose(rows.weights.reshape(2, 4), expected)
    assert all(sorted(row) == [0, 1, 2, 3] for row in rows.responses.tolist())


@pytest.mark.parametrize('negatives', [1, 2, 3])
def test_contrast_is_the_expectation_over_ordered_draws(world, logps, log_q, negatives):
    rows = population.contrast(world.log_optimum, log_q, negatives)
    found = rows.loss(functools.partial(epa, beta=BETA), logps, world.log_ref)
    r, p, q, total = world.r_theta(logps), np.exp(world.log_optimum), np.exp(log_q), 0.0
    for n in range(2):
        for y in range(4):
            for draws in itertools.product(range(4), repeat=negatives):
                probability = p[n, y] * np.prod(q[n, list(draws)]) / 2
                total += probability * np.log(1 + sum(np.exp(r[n, list(draws)] - r[n, y])))
    assert found == pytest.approx(total)
    assert rows.weights.sum() == pytest.approx(1)


def test_log_q_is_that_of_each_response(world, log_q):
    rows = population.contrast(world.log_optimum, log_q, 2, correct=True)
    for x, responses, rates in zip(rows.prompts, rows.responses, rows.log_q, strict=True):
        np.testing.assert_array_equal(rates, log_q[x, responses])


def test_weak_negatives_join_own_responses(world, logps, log_q):
    pairs = population.bradley_terry_pairs(
        world, population.independent_pairs(world.log_ref)
    )
    rows = population.with_weak(pairs, log_q, 2)
    found = rows.loss(functools.partial(epa, beta=BETA), logps, world.log_ref)
    r, q, total = world.r_theta(logps), np.exp(log_q), 0.0
    for x, (w, l), weight in zip(
        pairs.prompts, pairs.responses, pairs.weights, strict=True
    ):
        for draws in itertools.product(range(4), repeat=2):
            gaps = r[x, [l, *draws]] - r[x, w]
            probability = weight * np.prod(q[x, list(draws)])
            total += probability * np.log(1 + np.exp(gaps).sum())
    assert found == pytest.approx(total)
    assert np.isnan(rows.ratings[:, 2:]).all()
    assert (rows.roles == [Role.CHOSEN, Role.REJECTED, Role.WEAK, Role.WEAK]).all()


def test_choices_are_softmax_among_independent_draws(world):
    rows = population.choices(world, world.log_ref, 3)
    found = np.zeros((2, 4))
    np.add.at(found, (rows.prompts, rows.responses[:, 0]), rows.weights)
    p, expected = np.exp(world.log_ref), np.zeros((2, 4))
    for n in range(2):
        for draws in itertools.product(range(4), repeat=3):
            rewards = np.exp(world.reward[n, list(draws)])
            for y, share in zip(draws, rewards / rewards.sum(), strict=True):
                expected[n, y] += np.prod(p[n, list(draws)]) * share / 2
    np.testing.assert_allclose(found, expected)
    np.testing.assert_array_equal(
        rows.ratings, world.reward[rows.prompts[:, None], rows.responses]
    )


def test_samples_are_frequencies_of_the_population(world):
    rows = population.best_of_all(world)
    drawn = rows.sample(100_000, np.random.default_rng(0))
    assert drawn.weights.sum() == pytest.approx(1)
    np.testing.assert_allclose(drawn.weights, rows.weights, atol=5e-3)
    few = rows.sample(3, np.random.default_rng(0))
    assert len(few.weights) <= 3
    np.testing.assert_allclose(few.weights * 3, np.round(few.weights * 3))
