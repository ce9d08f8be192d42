import numpy as np
import pytest

from epa_jax.theory import neural, topical


@pytest.fixture(scope='module')
def tree():
    return topical.topical_tree(d_model=16)


def test_targets_are_distributions_that_favour_the_topic(tree):
    log_target = topical.target(tree, seed=0)
    np.testing.assert_allclose(np.exp(log_target).sum(axis=1), 1)
    for n, (topic, _) in enumerate(topical.prompts()):
        on = tree.responses.index((topic,) * 3)
        off = tree.responses.index((topic % 3 + 1,) * 3)
        assert log_target[n, on] > log_target[n, off]


def test_rewards_by_hand(tree):
    value = np.array([0.0, 0.25, -0.5, 1.0])
    assert topical._reward((1, 2, 0), 1, value, 1.0) == pytest.approx(0 + 0.25 - 0.5)
    assert topical._reward((1, 1, 1), 1, value, 1.0) == pytest.approx(2 + 0.75)
    assert topical._reward((0,), 1, value, 1.0) == pytest.approx(-2.0)
    assert topical._reward((3, 3, 0), 1, value, 0.0) == pytest.approx(2.0)


def test_neutral_rewards_do_not_know_topics(tree):
    def advantage(reward):
        gaps = [
            reward[n, tree.responses.index((topic,) * 3)]
            - reward[n, tree.responses.index((topic % 3 + 1,) * 3)]
            for n, (topic, _) in enumerate(topical.prompts())
        ]
        return np.mean(gaps)

    seeds = range(8)
    assert np.mean([advantage(topical.reward(tree, s, 1.0)) for s in seeds]) > 3
    assert abs(np.mean([advantage(topical.reward(tree, s, 0.0)) for s in seeds])) < 1


def test_the_reference_is_near_its_target(tree):
    world, params = topical.topical_world(tree, 0.5, seed=0, fit_steps=200)
    np.testing.assert_allclose(np.exp(world.log_ref).sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(neural.logps(tree, params), world.log_ref, atol=1e-4)
    target = np.exp(topical.target(tree, 0))
    assert np.abs(np.exp(world.log_ref) - target).sum(axis=1).max() < 0.3
