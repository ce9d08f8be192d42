import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epa_jax.theory.worlds import World, expectation, kl, random_world, slope_and_pearson

pytestmark = pytest.mark.usefixtures('float64')


def test_one_prompt_by_hand():
    """Two responses of equal reference probability, rewards 0 and beta * log 3."""
    beta = 0.5
    world = World(np.log([[0.5, 0.5]]), np.array([[0.0, beta * np.log(3)]]), beta)
    np.testing.assert_allclose(np.exp(world.log_optimum), [[0.25, 0.75]])
    np.testing.assert_allclose(world.log_partition, [np.log(2)])
    np.testing.assert_allclose(
        kl(world.log_optimum, world.log_ref), [0.13081203], rtol=1e-6
    )
    np.testing.assert_allclose(
        expectation(world.log_optimum, world.reward), [0.75 * beta * np.log(3)]
    )


@given(seed=st.integers(0, 1000), beta=st.sampled_from([0.05, 0.3, 2.0]))
def test_the_optimum_is_optimal_and_on_the_slope_1_line(seed, beta):
    world = random_world(2, 6, beta, seed)
    best = world.objective(world.log_optimum)
    np.testing.assert_allclose(best, beta * world.log_partition, rtol=1e-9)
    other = jax.nn.log_softmax(np.random.default_rng(seed).normal(size=(2, 6)), axis=1)
    gap = beta * kl(other, world.log_optimum)  # the objective falls short by just this
    np.testing.assert_allclose(best - world.objective(other), gap, rtol=1e-7, atol=1e-12)
    learned = world.r_theta(world.log_optimum)
    constant = learned - world.reward
    np.testing.assert_allclose(constant, constant[:, :1] + 0 * constant, atol=1e-9)
    slope, pearson = slope_and_pearson(learned, world.reward)
    np.testing.assert_allclose([slope, pearson], 1, rtol=1e-9)


def test_slope_and_pearson_are_those_of_numpy():
    x, y = np.random.default_rng(0).normal(size=(2, 3, 7))
    slope, pearson = slope_and_pearson(y, x)
    for n in range(3):
        assert slope[n] == pytest.approx(np.polyfit(x[n], y[n], 1)[0])
        assert pearson[n] == pytest.approx(np.corrcoef(x[n], y[n])[0, 1])


def test_random_worlds_are_distributions_and_repeat():
    world = random_world(3, 5, 0.1, 7)
    np.testing.assert_allclose(np.exp(world.log_ref).sum(axis=1), 1)
    np.testing.assert_array_equal(world.reward, random_world(3, 5, 0.1, 7).reward)
    assert not np.array_equal(world.reward, random_world(3, 5, 0.1, 8).reward)
