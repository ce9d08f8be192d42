import jax
import jax.numpy as jnp
import numpy as np

from epa_jax.theory.fit import minimise


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
