import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epa_jax.losses.energy import epa, ipm, softplus_sum_exp
from epa_jax.losses.pairwise import dpo
from epa_jax.types import ResponseTable, Role
from tests.losses.brute_force import pair_table, random_table

C, R, W = Role.CHOSEN, Role.REJECTED, Role.WEAK


def table_of(log_ratios, roles, log_q=None):
    """A table whose log-ratios, [N, K], are given; every prompt has the same roles."""
    logps = jnp.asarray(log_ratios)
    return ResponseTable(
        logps=logps,
        ref_logps=jnp.zeros_like(logps),
        lengths=np.ones(logps.shape, np.int32),
        roles=np.tile(np.array(roles, np.int8), (len(logps), 1)),
        log_q=log_q,
    )


@pytest.mark.parametrize('strong', [1, 2, 4])
@pytest.mark.parametrize('weak', [0, 1, 3])
def test_equal_policies_give_log_of_one_plus_negatives(strong, weak):
    roles = ([C] + [R] * strong + [W] * weak + [Role.PAD] * 8)[:8]
    table = table_of(np.zeros((3, 8)), roles)
    for loss in (epa, ipm):
        np.testing.assert_allclose(loss(table), np.log(1 + strong + weak), rtol=1e-6)


@given(st.integers(0, 10_000), st.floats(0.01, 1.0), st.floats(-3, 3))
def test_one_strong_negative_is_dpo(seed, beta, margin):
    table = random_table(seed, responses=2)
    energy = epa(table, beta=beta, margin=margin)
    pair = dpo(table, beta=beta, margin=margin)
    np.testing.assert_allclose(energy, pair, rtol=1e-5, atol=1e-6)


@given(st.integers(0, 10_000), st.floats(0.01, 1.0))
def test_on_the_whole_response_space_it_is_ipm(seed, beta):
    table = random_table(seed)
    np.testing.assert_array_equal(epa(table, beta=beta), ipm(table, beta=beta))


def test_ipm_is_a_likelihood():
    # Over a response space, exp(-loss) as each response in turn is the chosen one.
    log_ratios = np.random.default_rng(0).normal(0, 3, (1, 5))
    probabilities = []
    for chosen in range(5):
        roles = [C if k == chosen else R for k in range(5)]
        probabilities.append(math.exp(-ipm(table_of(log_ratios, roles), beta=0.7)[0]))
    energy = np.exp(0.7 * log_ratios[0])
    np.testing.assert_allclose(probabilities, energy / energy.sum(), rtol=1e-5)


@pytest.mark.parametrize('roles', [[C, R, W], [C, W, W], [C, R, R]])
def test_correction_by_log_q_removes_the_bias_of_the_negatives(roles):
    """The expected loss in a world of four responses, by enumeration.

    The chosen response is drawn from p, the negatives from a skewed q. The gradient of
    the expectation must vanish at r = log p with the correction, at r = log(p / q)
    without, and at neither the other way round.
    """
    p, q = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.7, 0.05, 0.05, 0.2])
    draws = np.array(list(itertools.product(range(4), repeat=3)))
    weights = p[draws[:, 0]] * q[draws[:, 1]] * q[draws[:, 2]]
    assert math.isclose(weights.sum(), 1)

    def slope(at, corrected):
        def expected(r):
            log_q = jnp.log(q)[draws] if corrected else None
            return jnp.sum(weights * epa(table_of(r[draws], roles, log_q), beta=1.0))

        return float(np.abs(jax.grad(expected)(jnp.asarray(at))).max())

    with jax.enable_x64(True):
        assert slope(np.log(p), True) < 1e-12
        assert slope(np.log(p / q), False) < 1e-12
        assert slope(np.log(p / q), True) > 0.01
        assert slope(np.log(p), False) > 0.01


def test_log_q_counts_only_by_differences_within_a_prompt():
    table = random_table(5, log_q=True)
    shifted = table.replace(log_q=table.log_q + np.arange(6, dtype=np.float32)[:, None])
    np.testing.assert_allclose(epa(shifted), epa(table), rtol=1e-5, atol=1e-6)
    uniform = table.replace(log_q=np.full_like(table.log_q, -3.0))
    plain = table.replace(log_q=None)
    np.testing.assert_allclose(epa(uniform), epa(plain), rtol=1e-5, atol=1e-6)
    assert not np.allclose(epa(table), epa(plain))


def test_margin_acts_on_strong_negatives_only():
    weak = pair_table(3.0, roles=(C, W))
    np.testing.assert_array_equal(epa(weak, margin=2.0), epa(weak))
    moved = epa(pair_table(3.0), beta=1.0, margin=2.0)
    np.testing.assert_allclose(moved, epa(pair_table(1.0), beta=1.0), rtol=1e-6)


def test_gradient_is_the_softmax_less_one_hot():
    beta = 0.3
    table = random_table(3)
    gradient = jax.grad(lambda x: jnp.sum(epa(table.replace(logps=x), beta=beta)))(
        jnp.asarray(table.logps)
    )
    present = table.roles != Role.PAD
    r = beta * (table.logps.astype(np.float64) - table.ref_logps)
    energy = np.where(present, np.exp(r - r.max(axis=1, keepdims=True)), 0.0)
    softmax = energy / energy.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(gradient, beta * (softmax - (table.roles == C)), atol=1e-6)


@pytest.mark.parametrize('weights', [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0)])
def test_weight_zero_leaves_negatives_out(weights):
    table = random_table(1)
    left_out = [role for role, w in zip([R, W], weights, strict=True) if w == 0]
    gone = np.isin(table.roles, left_out)
    removed = table.replace(roles=np.where(gone, Role.PAD, table.roles))

    def total(logps):
        loss = epa(
            table.replace(logps=logps), weight_strong=weights[0], weight_weak=weights[1]
        )
        return jnp.sum(loss), loss

    gradient, loss = jax.grad(total, has_aux=True)(jnp.asarray(table.logps))
    np.testing.assert_allclose(loss, epa(removed), rtol=1e-6)
    assert np.all(np.isfinite(gradient))
    np.testing.assert_array_equal(np.asarray(gradient)[gone], 0)


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
    table = pair_table(3.0, roles=(C, Role.PAD))
    with jax.debug_nans(True):
        gradient = jax.grad(lambda x: epa(table.replace(logps=x))[0])(
            jnp.asarray(table.logps)
        )
    np.testing.assert_array_equal(gradient, 0)


def test_small_losses_keep_their_digits():
    # log(1 + exp(-30)) rounds to 0 in float32 unless it is computed as log1p
    table = pair_table(30.0)
    np.testing.assert_allclose(epa(table, beta=1.0), np.log1p(np.exp(-30.0)), rtol=1e-5)
