import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epa_jax.losses.energy import epa, softplus_sum_exp
from epa_jax.losses.pairwise import dpo
from epa_jax.types import ResponseTable, Role
from tests.losses import brute_force

SETTINGS = [
    {},
    {'beta': 1.0},
    {'margin': 1.5, 'weight_strong': 0.3, 'weight_weak': 2.5},
]


@pytest.mark.parametrize('settings', SETTINGS)
def test_equals_the_formula_in_float64(settings):
    table = brute_force.random_table(0, prompts=20)
    expected = [brute_force.epa(table, n, **settings) for n in range(20)]
    np.testing.assert_allclose(epa(table, **settings), expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize('strong', [1, 2, 4])
@pytest.mark.parametrize('weak', [0, 1, 3])
def test_equal_policies_give_log_of_one_plus_negatives(strong, weak):
    roles = [Role.CHOSEN] + [Role.REJECTED] * strong + [Role.WEAK] * weak
    logps = np.random.default_rng(0).normal(-90, 9, (3, len(roles))).astype(np.float32)
    table = ResponseTable(
        logps=logps,
        ref_logps=logps,
        lengths=np.ones(logps.shape, np.int32),
        roles=np.tile(np.array(roles, np.int8), (3, 1)),
    )
    np.testing.assert_allclose(epa(table), np.log(1 + strong + weak), rtol=1e-6)


@given(st.integers(0, 10_000), st.floats(0.01, 1.0), st.floats(-3, 3))
def test_one_strong_negative_is_dpo(seed, beta, margin):
    table = brute_force.random_table(seed, responses=2)
    energy = epa(table, beta=beta, margin=margin)
    np.testing.assert_array_equal(energy, dpo(table, beta=beta, margin=margin))


def test_margin_acts_on_strong_negatives_only():
    weak = brute_force.pair_table(3.0, roles=(Role.CHOSEN, Role.WEAK))
    np.testing.assert_array_equal(epa(weak, margin=2.0), epa(weak))
    strong = brute_force.pair_table(3.0)
    shifted = brute_force.pair_table(3.0 - 2.0)
    np.testing.assert_allclose(
        epa(strong, beta=1.0, margin=2.0), epa(shifted, beta=1.0), rtol=1e-6
    )


def test_gradient_is_the_softmax_less_one_hot():
    beta = 0.3
    table = brute_force.random_table(3)

    def total(logps):
        return jnp.sum(epa(table.replace(logps=logps), beta=beta))

    gradient = jax.grad(total)(jnp.asarray(table.logps))
    present = table.roles != Role.PAD
    r = beta * (table.logps.astype(np.float64) - table.ref_logps)
    energy = np.where(present, np.exp(r - r.max(axis=1, keepdims=True)), 0.0)
    softmax = energy / energy.sum(axis=1, keepdims=True)
    expected = beta * (softmax - (table.roles == Role.CHOSEN))
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


@pytest.mark.parametrize('weights', [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0)])
def test_weight_zero_leaves_negatives_out(weights):
    table = brute_force.random_table(1)
    left_out = [Role.REJECTED, Role.WEAK]
    left_out = [r for r, w in zip(left_out, weights, strict=True) if w == 0]
    removed = table.replace(
        roles=np.where(np.isin(table.roles, left_out), Role.PAD, table.roles)
    )

    def total(logps):
        loss = epa(
            table.replace(logps=logps), weight_strong=weights[0], weight_weak=weights[1]
        )
        return jnp.sum(loss), loss

    gradient, loss = jax.grad(total, has_aux=True)(jnp.asarray(table.logps))
    np.testing.assert_allclose(loss, epa(removed), rtol=1e-6)
    assert np.all(np.isfinite(gradient))
    assert np.all(np.asarray(gradient)[np.isin(table.roles, left_out)] == 0)


@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=4, max_size=4),
    st.integers(0, 2**31),
)
def test_softplus_sum_exp_is_log_sum_exp_with_a_zero(values, seed):
    weights = np.random.default_rng(seed).choice([0.0, 0.5, 1.0], len(values))
    x = np.array(values, np.float64)
    kept = x[weights > 0] + np.log(weights[weights > 0])
    terms = np.append(kept, 0.0)
    expected = terms.max() + np.log(np.exp(terms - terms.max()).sum())
    found = softplus_sum_exp(jnp.asarray(values, jnp.float32), jnp.asarray(weights))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_no_negatives_means_no_nan_even_inside():
    table = brute_force.pair_table(3.0, roles=(Role.CHOSEN, Role.PAD))
    with jax.debug_nans(True):
        gradient = jax.grad(lambda x: epa(table.replace(logps=x))[0])(
            jnp.asarray(table.logps)
        )
    np.testing.assert_array_equal(gradient, 0)


def test_small_losses_keep_their_digits():
    # log(1 + exp(-30)) rounds to 0 in float32 unless it is computed as log1p
    table = brute_force.pair_table(30.0)
    np.testing.assert_allclose(epa(table, beta=1.0), np.log1p(np.exp(-30.0)), rtol=1e-5)
