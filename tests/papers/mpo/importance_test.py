"""Theorem 4.1's gradient: three ways to write it agree; wrong ones do not."""

import numpy as np
import pytest

from epa_jax.theory.population import bradley_terry_pairs
from epa_jax.theory.worlds import random_world
from experiments.papers.mpo import importance

pytestmark = pytest.mark.usefixtures('float64')


@pytest.fixture(scope='module')
def world():
    return random_world(importance.PROMPTS, importance.RESPONSES, importance.BETA, 0)


@pytest.fixture(scope='module')
def logits(world):
    return world.log_ref + np.random.default_rng(1).normal(size=world.reward.shape)


@pytest.mark.parametrize('name', ['uniform', 'reference', 'narrow'])
def test_any_behaviour_serves(world, logits, name):
    row = importance.compare(world, logits, name, importance.behaviours(world)[name])
    assert row['error_on_shown_pairs'] < 1e-12
    assert row['error_on_own_pairs_weighted'] < 1e-12
    assert row['error_on_own_pairs_unweighted'] > 0.1
    assert row['smallest_weight'] < 1 < row['largest_weight']
    assert 0 < row['effective_fraction'] < 1


def test_the_on_policy_gradient_is_that_of_the_expected_reward(world, logits):
    """Central differences of sum over pairs of P(annotator agrees with the policy)."""
    shown = importance.pairs_of(importance.behaviours(world)['reference'])
    reward = np.asarray(world.reward)

    def expected_reward(logits):
        logps = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        gap = importance.BETA * (logps[:, :, None] - logps[:, None, :])
        policy, truth = (
            1 / (1 + np.exp(-g)) for g in (gap, reward[:, :, None] - reward[:, None, :])
        )
        agree = policy * truth + (1 - policy) * (1 - truth)
        return np.sum(shown * agree) / len(shown)

    base, step = np.asarray(logits), 1e-5
    slopes = np.zeros_like(base)
    for where in np.ndindex(base.shape):
        up, down = base.copy(), base.copy()
        up[where] += step
        down[where] -= step
        slopes[where] = (expected_reward(up) - expected_reward(down)) / (2 * step)
    np.testing.assert_allclose(
        importance.on_policy(logits, world, shown), slopes, atol=1e-9
    )


def test_weights_make_one_behaviour_of_another(world):
    shown, wanted = (
        importance.pairs_of(importance.behaviours(world)[name])
        for name in ('uniform', 'reference')
    )
    made = importance.reweighted(bradley_terry_pairs(world, shown), wanted, shown)
    direct = bradley_terry_pairs(world, wanted)
    assert made.weights.sum() == pytest.approx(1)
    np.testing.assert_array_equal(made.responses, direct.responses)
    np.testing.assert_allclose(made.weights, direct.weights, rtol=1e-12)
