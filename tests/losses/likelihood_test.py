import jax
import jax.numpy as jnp
import numpy as np

from epa_jax.losses.likelihood import sft
from epa_jax.types import Role
from tests.losses import brute_force


def test_is_minus_the_chosen_sum():
    table = brute_force.random_table(0)
    expected = [brute_force.sft(table, n) for n in range(len(table.roles))]
    np.testing.assert_allclose(sft(table), expected, rtol=1e-6)


def test_gradient_is_minus_one_on_the_chosen_only():
    table = brute_force.random_table(1)
    gradient = jax.grad(lambda x: jnp.sum(sft(table.replace(logps=x))))(
        jnp.asarray(table.logps)
    )
    np.testing.assert_array_equal(gradient, -1.0 * (table.roles == Role.CHOSEN))


def test_needs_no_reference():
    table = brute_force.random_table(2)
    np.testing.assert_array_equal(sft(table.replace(ref_logps=None)), sft(table))
