import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epa_jax.losses.pairwise import dpo
from epa_jax.types import Role
from tests.losses import brute_force


@pytest.mark.parametrize(
    'settings',
    [{}, {'beta': 0.5, 'margin': 1.0}, {'label_smoothing': 0.2}],
)
def test_equals_the_formula_in_float64(settings):
    table = brute_force.random_table(1, prompts=20)
    expected = [brute_force.dpo(table, n, **settings) for n in range(20)]
    np.testing.assert_allclose(dpo(table, **settings), expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize('label_smoothing', [0.0, 0.1, 0.5])
def test_equal_policies_give_ln_2(label_smoothing):
    table = brute_force.random_table(2)
    table = table.replace(logps=table.ref_logps)
    loss = dpo(table, label_smoothing=label_smoothing)
    np.testing.assert_allclose(loss, math.log(2), rtol=1e-6)


def test_value_derived_by_hand():
    # beta = 0.1, log-ratios 2 and -3: -log sigmoid(0.5) = 0.474077
    table = brute_force.pair_table(5.0)
    np.testing.assert_allclose(dpo(table, beta=0.1), 0.474077, rtol=1e-5)


def test_gradient_is_that_of_the_paper():
    # Eq. 7's gradient: -beta * sigmoid(r_l - r_w) on the chosen, its negative on the other
    beta, gap = 0.2, 4.0
    table = brute_force.pair_table(gap)
    gradient = jax.grad(lambda x: dpo(table.replace(logps=x), beta=beta)[0])(
        jnp.asarray(table.logps)
    )
    weight = beta / (1 + math.exp(beta * gap))
    np.testing.assert_allclose(gradient, [[-weight, weight]], rtol=1e-5)


@given(st.integers(0, 10_000), st.floats(0.01, 0.5))
def test_smoothed_labels_mix_both_orders(seed, label_smoothing):
    table = brute_force.random_table(seed, responses=2)
    swap = {Role.CHOSEN: Role.REJECTED, Role.REJECTED: Role.CHOSEN}
    flipped = table.replace(roles=np.vectorize(swap.get, otypes=[np.int8])(table.roles))
    mixed = (1 - label_smoothing) * dpo(table) + label_smoothing * dpo(flipped)
    found = dpo(table, label_smoothing=label_smoothing)
    np.testing.assert_allclose(found, mixed, rtol=1e-5)


def test_weak_negatives_are_ignored():
    table = brute_force.random_table(5)
    without = np.where(table.roles == Role.WEAK, Role.PAD, table.roles)
    np.testing.assert_array_equal(dpo(table), dpo(table.replace(roles=without)))


def test_prompt_without_strong_negatives_gives_zero():
    table = brute_force.pair_table(3.0, roles=(Role.CHOSEN, Role.WEAK))
    gradient = jax.grad(lambda x: dpo(table.replace(logps=x))[0])(jnp.asarray(table.logps))
    assert dpo(table)[0] == 0
    np.testing.assert_array_equal(gradient, 0)
