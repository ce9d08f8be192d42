import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epa_jax.losses.likelihood import chosen_nll, sft
from epa_jax.types import ResponseTable, Role
from tests.losses.brute_force import random_table


def by_hand():
    return ResponseTable(
        logps=np.array([[-7.0, -12.0], [-9.0, -3.0]], np.float32),
        ref_logps=None,
        lengths=np.array([[5, 8], [0, 0]], np.int32),
        roles=np.array([[Role.REJECTED, Role.CHOSEN], [Role.REJECTED, Role.WEAK]], np.int8),
    )


def test_values_derived_by_hand():
    np.testing.assert_array_equal(sft(by_hand()), [12.0, 0.0])
    np.testing.assert_array_equal(chosen_nll(by_hand(), 'sum'), [12.0, 0.0])
    np.testing.assert_array_equal(chosen_nll(by_hand(), 'mean'), [1.5, 0.0])


def test_gradient_is_minus_one_on_the_chosen_only():
    table = random_table(1)
    gradient = jax.grad(lambda x: jnp.sum(sft(table.replace(logps=x))))(
        jnp.asarray(table.logps)
    )
    np.testing.assert_array_equal(gradient, -1.0 * (table.roles == Role.CHOSEN))


def test_mean_does_not_depend_on_the_other_responses():
    table = random_table(2)
    chosen = table.roles == Role.CHOSEN
    longer = table.replace(lengths=np.where(chosen, table.lengths, 999))
    np.testing.assert_array_equal(chosen_nll(longer, 'mean'), chosen_nll(table, 'mean'))


@pytest.mark.parametrize('tokens', ['sum', 'mean'])
def test_a_response_of_no_tokens_is_not_a_division_by_zero(tokens):
    table = random_table(3)
    table = table.replace(lengths=np.zeros_like(table.lengths))
    assert np.all(np.isfinite(chosen_nll(table, tokens)))
