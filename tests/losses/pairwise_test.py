import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epa_jax.losses.pairwise import (
    apo_down,
    apo_zero,
    discopop,
    dpo,
    exo_pair,
    hinge,
    ipo,
    robust,
    sigmoid_norm,
    sppo_hard,
)
from epa_jax.types import ResponseTable, Role
from tests.losses.brute_force import pair_table, random_table, sigmoid, softplus

C, R, W = Role.CHOSEN, Role.REJECTED, Role.WEAK


def two_sides(a, b, lengths=(1, 1)):
    """One pair with log-ratios a and b."""
    return ResponseTable(
        logps=np.array([[a - 40.0, b - 50.0]], np.float32),
        ref_logps=np.array([[-40.0, -50.0]], np.float32),
        lengths=np.array([lengths], np.int32),
        roles=np.array([[C, R]], np.int8),
    )


def flip(table):
    """The same pairs with the other label."""
    swapped = {C: R, R: C}
    roles = np.vectorize(swapped.get, otypes=[np.int8])(table.roles)
    return table.replace(roles=roles)


def slopes(loss, a, b, **values):
    """Derivatives by both log-ratios."""
    table = two_sides(a, b)
    gradient = jax.grad(lambda x: loss(table.replace(logps=x), **values)[0])
    return np.asarray(gradient(jnp.asarray(table.logps)))[0]


@pytest.mark.parametrize(
    ('loss', 'values', 'expected'),
    [
        # log-ratios a = 2 and b = -3, beta = 0.1: h = 0.5
        (dpo, {}, 0.474077),
        (dpo, {'margin': 0.5}, math.log(2)),
        (dpo, {'label_smoothing': 0.2}, 0.8 * 0.474077 + 0.2 * 0.974077),
        (robust, {'label_smoothing': 0.2}, (0.8 * 0.474077 - 0.2 * 0.974077) / 0.6),
        (ipo, {}, 0.0),
        (ipo, {'beta': 0.5}, 16.0),
        (ipo, {'beta': 0.5, 'tokens': 'mean'}, (0.5 + 1.5 - 1) ** 2),
        (hinge, {}, 0.5),
        (hinge, {'beta': 0.2}, 0.0),
        (sigmoid_norm, {'beta': 1.0}, 0.126928),  # of 2/4 + 3/2 = 2
        (sigmoid_norm, {'beta': 1.0, 'margin': 2.0}, math.log(2)),
        (sppo_hard, {}, (2 - 5) ** 2 + (-3 + 5) ** 2),
        (apo_zero, {}, 1 - 0.549834 + 0.425557),
        (apo_down, {}, 0.549834 + 1 - 0.622459),
    ],
)
def test_values_derived_by_hand(loss, values, expected):
    table = two_sides(2.0, -3.0, lengths=(4, 2))
    np.testing.assert_allclose(loss(table, **values), [expected], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('label_smoothing', [0.0, 0.1, 0.5])
def test_equal_policies_give_ln_2(label_smoothing):
    table = random_table(2)
    table = table.replace(logps=table.ref_logps)
    loss = dpo(table, label_smoothing=label_smoothing)
    np.testing.assert_allclose(loss, math.log(2), rtol=1e-6)


@pytest.mark.parametrize('tokens', ['sum', 'mean'])
def test_ipo_of_equal_policies_is_finite_in_value_and_gradient(tokens):
    # Peers divide 0 by 0 here.
    table = two_sides(0.0, 0.0, lengths=(0, 3))

    def total(logps):
        return ipo(table.replace(logps=logps), tokens=tokens)[0]

    value, gradient = jax.value_and_grad(total)(jnp.asarray(table.logps))
    np.testing.assert_allclose(value, 25.0)
    assert np.all(np.isfinite(gradient))


def test_gradient_is_that_of_the_paper():
    # Eq. 7's gradient: -beta * sigmoid(r_l - r_w) on the chosen, its negative on the other
    weight = 0.2 / (1 + math.exp(0.2 * 4.0))
    found = slopes(dpo, 4.0, 0.0, beta=0.2)
    np.testing.assert_allclose(found, [-weight, weight], rtol=1e-5)


@given(st.integers(0, 10_000), st.floats(0.01, 0.5))
def test_smoothed_labels_mix_both_orders(seed, label_smoothing):
    table = random_table(seed, responses=2)
    mixed = (1 - label_smoothing) * dpo(table) + label_smoothing * dpo(flip(table))
    found = dpo(table, label_smoothing=label_smoothing)
    np.testing.assert_allclose(found, mixed, rtol=1e-5)


@given(st.integers(0, 10_000), st.floats(0.01, 0.45))
def test_robust_is_dpo_in_expectation_over_flipped_labels(seed, rate):
    table = random_table(seed, responses=2)
    right = robust(table, label_smoothing=rate)
    wrong = robust(flip(table), label_smoothing=rate)
    expected = (1 - rate) * right + rate * wrong
    scale = float(np.max(np.abs(wrong)))
    np.testing.assert_allclose(expected, dpo(table), rtol=1e-4, atol=1e-6 * scale)


def test_robust_without_noise_is_dpo_and_may_be_negative_with():
    table = random_table(3)
    np.testing.assert_allclose(robust(table, label_smoothing=0.0), dpo(table), rtol=1e-6)
    found = robust(pair_table(2.0), beta=1.0, label_smoothing=0.1)
    np.testing.assert_allclose(found, [(0.9 * 0.126928 - 0.1 * 2.126928) / 0.8], rtol=1e-5)
    assert found[0] < 0


@pytest.mark.parametrize('beta', [0.05, 0.1, 1.0])
def test_ipo_is_least_at_one_over_two_beta(beta):
    gap = 1 / (2 * beta)
    np.testing.assert_allclose(ipo(two_sides(gap, 0.0), beta=beta), 0, atol=1e-9)
    np.testing.assert_allclose(slopes(ipo, gap, 0.0, beta=beta), 0, atol=1e-5)
    assert slopes(ipo, gap - 0.1, 0.0, beta=beta)[0] < 0
    assert slopes(ipo, gap + 0.1, 0.0, beta=beta)[0] > 0


def test_sppo_is_least_where_each_side_has_its_own_target():
    # Unlike IPO's, both log-ratios are fixed: 1 / (2 beta) and its negative.
    np.testing.assert_allclose(sppo_hard(two_sides(5.0, -5.0)), [0.0])
    np.testing.assert_allclose(slopes(sppo_hard, 7.0, -5.0), [4.0, 0.0])
    np.testing.assert_allclose(slopes(sppo_hard, 5.0, -2.0), [0.0, 6.0])


@pytest.mark.parametrize('rate', [1e-3, 0.1, 0.4])
def test_exo_is_zero_only_where_the_policy_has_the_smoothed_label(rate):
    h = math.log((1 - rate) / rate)
    table = two_sides(h, 0.0)
    loss = exo_pair(table, beta=1.0, label_smoothing=rate)
    np.testing.assert_allclose(loss, 0, atol=1e-6)
    for step in (-0.3, 0.3):
        away = two_sides(h + step, 0.0)
        assert exo_pair(away, beta=1.0, label_smoothing=rate)[0] > 1e-6


def test_hinge_has_a_gradient_only_within_its_margin():
    np.testing.assert_allclose(slopes(hinge, 9.0, 0.0), [-0.1, 0.1], rtol=1e-6)
    np.testing.assert_array_equal(slopes(hinge, 11.0, 0.0), [0, 0])


def test_discopop_is_logistic_far_below_and_exponential_far_above():
    # At z = 0 the two mix half and half: (log 2 + 1) / 2.
    np.testing.assert_allclose(discopop(two_sides(0.0, 0.0)), [(math.log(2) + 1) / 2])
    for gap, expected in ((-20.0, softplus(2.0)), (20.0, math.exp(-2.0))):
        np.testing.assert_allclose(discopop(two_sides(gap, 0.0)), expected, rtol=1e-6)


@pytest.mark.parametrize('tau', [1e-3, 0.05, 1.0])
@pytest.mark.parametrize('gap', [-1e4, -900.0, -100.0, 100.0, 1e4])
def test_discopop_never_overflows(gap, tau):
    # The textbook form is 0 * inf from z = -89 on.
    value = discopop(two_sides(gap, 0.0), beta=1.0, tau=tau)
    expected = softplus(-gap) if gap < 0 else 0.0
    extra = 1.0 if tau == 1.0 and gap < 0 else 0.0  # sigmoid(z) exp(-z) tends to 1
    np.testing.assert_allclose(value, expected + extra, rtol=1e-6, atol=1e-30)
    assert np.all(np.isfinite(slopes(discopop, gap, 0.0, beta=1.0, tau=tau)))


def test_apo_zero_raises_one_side_and_lowers_the_other_apo_down_lowers_both():
    up, down = slopes(apo_zero, 0.5, -0.5)
    assert up < 0 < down
    # sigmoid'(0.3) of the anchor, against sigmoid'(2) of the gap
    chosen, rejected = slopes(apo_down, 3.0, -17.0)
    anchor, gap = (0.1 * sigmoid(h) * sigmoid(-h) for h in (0.3, 2.0))
    np.testing.assert_allclose([chosen, rejected], [anchor - gap, gap], rtol=1e-4)
    assert chosen > 0


@pytest.mark.parametrize('loss', [apo_zero, apo_down, sppo_hard])
def test_anchored_losses_know_the_level_of_rewards(loss):
    low, high = loss(two_sides(-1.0, -4.0)), loss(two_sides(6.0, 3.0))
    assert abs(float(low[0] - high[0])) > 1e-3


@pytest.mark.parametrize('loss', [dpo, ipo, sppo_hard, apo_down, discopop])
def test_weak_negatives_are_ignored(loss):
    table = random_table(5)
    without = np.where(table.roles == W, Role.PAD, table.roles)
    np.testing.assert_array_equal(loss(table), loss(table.replace(roles=without)))


def test_prompt_without_strong_negatives_gives_zero():
    table = pair_table(3.0, roles=(C, W))
    gradient = jax.grad(lambda x: dpo(table.replace(logps=x))[0])(jnp.asarray(table.logps))
    assert dpo(table)[0] == 0
    np.testing.assert_array_equal(gradient, 0)


def test_mean_per_token_divides_each_side_by_its_own_length():
    table = two_sides(6.0, -6.0, lengths=(2, 3))
    sums = two_sides(3.0, -2.0)
    np.testing.assert_allclose(ipo(table, tokens='mean'), ipo(sums), rtol=1e-5)
    np.testing.assert_allclose(sigmoid_norm(table), dpo(sums), rtol=1e-6)
