import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epa_jax.losses.numerics import EXP_CAP, capped_exp, capped_expm1, inverse_power

ANYTHING = st.floats(-1e4, 1e4, width=32)


@given(st.floats(-80, 29.5, width=32))
def test_is_exp_below_the_cap(x):
    np.testing.assert_allclose(capped_expm1(jnp.float32(x)), np.expm1(x), rtol=1e-5)
    np.testing.assert_allclose(capped_exp(jnp.float32(x)), np.exp(x), rtol=1e-5, atol=1e-7)


def test_is_the_tangent_above_the_cap():
    top = np.exp(EXP_CAP)
    value, slope = jax.vmap(jax.value_and_grad(capped_exp))(jnp.array([30.0, 31, 1e4]))
    np.testing.assert_allclose(value, [top, 2 * top, top * (1e4 - 29)], rtol=1e-5)
    np.testing.assert_allclose(slope, top, rtol=1e-5)


@given(ANYTHING, ANYTHING)
def test_never_falls(x, y):
    low, high = sorted([x, y])
    assert capped_exp(jnp.float32(low)) <= capped_exp(jnp.float32(high))


@given(ANYTHING)
def test_slopes_are_finite_and_not_negative(x):
    slope = jax.grad(capped_exp)(jnp.float32(x))
    assert np.isfinite(slope)
    assert slope >= 0


@pytest.mark.parametrize('alpha', [-2.0, -0.5, 1e-6, 1e-4, 0.25, 1.0, 3.0])
def test_inverse_power_is_its_formula_to_the_last_digits(alpha):
    log_p = np.linspace(-9, 9, 37).astype(np.float32)
    expected = (1 - np.exp(-alpha * log_p.astype(np.longdouble))) / alpha
    if abs(alpha) < 1e-3:  # where even long doubles cancel: the series
        z = alpha * log_p.astype(np.float64)
        expected = log_p * (1 - z / 2 + z**2 / 6)
    found = inverse_power(jnp.asarray(log_p), alpha)
    np.testing.assert_allclose(found, expected.astype(np.float64), rtol=3e-6)


def test_inverse_power_tends_to_the_logarithm():
    log_p = jnp.linspace(-50, 50, 11)
    np.testing.assert_array_equal(inverse_power(log_p, 0), log_p)
    np.testing.assert_allclose(inverse_power(log_p, 1e-9), log_p, rtol=1e-6)
    np.testing.assert_allclose(inverse_power(log_p, -1e-9), log_p, rtol=1e-6)


@given(ANYTHING, st.floats(-10, 10).filter(lambda a: abs(a) > 1e-30))
def test_inverse_power_is_finite_and_so_is_its_slope(log_p, alpha):
    value, slope = jax.value_and_grad(inverse_power)(jnp.float32(log_p), alpha)
    assert np.isfinite(value)
    assert np.isfinite(slope)
    assert slope >= 0
