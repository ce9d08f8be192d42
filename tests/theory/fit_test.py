import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epa_jax.theory.fit import minimise, sandwich


def test_a_quadratic_is_minimised_to_the_last_digits():
    matrix = np.diag([1.0, 10.0, 100.0]) + 0.5
    target = np.array([1.0, -2.0, 3.0])
    with jax.enable_x64(True):
        fit = minimise(
            lambda p: 0.5 * (p['x'] - target) @ matrix @ (p['x'] - target),
            {'x': jnp.zeros(3)},
        )
    np.testing.assert_allclose(fit.params['x'], target, rtol=1e-9)
    assert fit.gradient_norm < 1e-10
    assert fit.loss < 1e-18
    assert 1 < fit.steps < 100


def test_it_stops_at_the_limit_and_says_how_far_it_came():
    with jax.enable_x64(True):
        fit = minimise(lambda p: jnp.sum((p**2 - 1) ** 2), jnp.array([3.0]), max_steps=2)
    assert fit.steps == 2
    assert fit.gradient_norm > 1e-6


def test_the_spread_of_a_mean_is_the_variance_and_flat_directions_have_none():
    """Rows x_i of weight w_i, loss (a + b - x_i)^2 / 2: only a + b is known."""
    x, w = np.array([0.0, 1.0, 4.0]), np.array([0.5, 0.3, 0.2])
    mean, variance = w @ x, w @ (x - w @ x) ** 2
    with jax.enable_x64(True):
        found = sandwich(
            lambda p: 0.5 * (jnp.sum(p) - x) ** 2, jnp.array([mean, 0.0]), jnp.asarray(w)
        )
    covariance = np.asarray(found)
    assert np.sum(covariance) == pytest.approx(variance, rel=1e-12)
    np.testing.assert_allclose(covariance @ np.array([1, -1]), 0, atol=1e-12)
