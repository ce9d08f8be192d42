import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epa_jax.losses import make_loss
from epa_jax.losses.unpaired import bco, bco_rewards, kto
from epa_jax.types import ResponseTable, Role, WeightedSum
from tests.losses.brute_force import (
    is_own,
    log_sigmoid,
    random_table,
    read,
    sigmoid,
    softplus,
)
from tests.losses.measure import value_and_gradients, values, widen
from tests.losses.twins import TWINS

SEEDS = st.integers(0, 10_000)
C, R, W, P = Role.CHOSEN, Role.REJECTED, Role.WEAK, Role.PAD


def by_hand():
    """Two prompts; log-ratios of the weak responses are 4 and -1."""
    return ResponseTable(
        logps=np.array([[-8.0, -13.0, -6.0], [-9.0, -9.5, -11.0]], np.float32),
        ref_logps=np.full((2, 3), -10.0, np.float32),
        lengths=np.ones((2, 3), np.int32),
        roles=np.array([[C, R, W], [R, C, W]], np.int8),
    )


def test_kto_by_hand():
    # z = max(0, mean(4, -1)) = 1.5; log-ratios 2 and -3, 0.5 and 1
    expected = [
        (1 - sigmoid(0.1 * (2 - 1.5)) + 1 - sigmoid(0.1 * (1.5 + 3))) / 2,
        (1 - sigmoid(0.1 * (0.5 - 1.5)) + 1 - sigmoid(0.1 * (1.5 - 1))) / 2,
    ]
    np.testing.assert_allclose(kto(by_hand()), expected, rtol=1e-6)


def test_kto_weights_by_hand():
    found = kto(by_hand(), weight_chosen=3.0, weight_rejected=0.0, baseline='zero')
    np.testing.assert_allclose(
        found, [1.5 * sigmoid(-0.2), 1.5 * sigmoid(-0.05)], rtol=1e-6
    )


def test_kto_baseline_is_never_negative():
    table = by_hand()
    low = table.replace(logps=np.where(table.roles == W, -50.0, table.logps))
    np.testing.assert_array_equal(kto(low), kto(table, baseline='zero'))


def test_kto_without_weak_responses_has_baseline_zero():
    table = by_hand()
    without = table.replace(roles=np.where(table.roles == W, P, table.roles))
    np.testing.assert_array_equal(kto(without), kto(table, baseline='zero'))


def test_kto_baseline_is_a_mean_over_all_weak_responses_not_a_mean_of_means():
    table = by_hand().replace(roles=np.array([[C, W, W], [R, C, W]], np.int8))
    z = max(0, (-3 + 4 - 1) / 3)
    np.testing.assert_allclose(kto(table)[0], sigmoid(-0.1 * (2 - z)), rtol=1e-6)


def test_kto_baseline_carries_no_gradient_but_counts():
    table = widen(random_table(1, scale=5.0))
    weak = table.roles == W
    table = table.replace(logps=np.where(weak, table.ref_logps + 3.0, table.logps))
    losses, gradients = value_and_gradients(make_loss('kto', {}), table)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient[weak], 0)
    moved = table.replace(logps=np.where(weak, table.logps + 5.0, table.logps))
    assert np.all(np.abs(values(make_loss('kto', {}), moved) - losses) > 1e-4)
    # each own response's slope is that of its term with z held
    z, beta = 3.0, 0.1
    h = beta * (table.logps - table.ref_logps - z)
    bell = beta / (1 + np.exp(h)) / (1 + np.exp(-h))
    own = is_own(table.roles)
    sign = np.where(table.roles == C, -1.0, 1.0)
    expected = np.where(own, sign * bell, 0.0) / own.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(gradients[0], expected, rtol=1e-10, atol=1e-15)


def test_bco_by_hand():
    # rewards 0.2 and -0.3, 0.05 and 0.1: their mean is 0.0125
    d = 0.0125
    expected = [
        -log_sigmoid(0.2 - d) - log_sigmoid(0.3 + d),
        -log_sigmoid(0.05 - d) - log_sigmoid(-(0.1 - d)),
    ]
    for shift in ('running', 'batch'):
        np.testing.assert_allclose(bco(by_hand(), shift=shift), expected, rtol=1e-6)
    plain = [softplus(-0.2) + softplus(-0.3), softplus(-0.05) + softplus(0.1)]
    np.testing.assert_allclose(bco(by_hand(), shift='none'), plain, rtol=1e-6)


def test_bco_counts_each_strong_negative_of_a_prompt_alike():
    table = by_hand().replace(roles=np.array([[C, R, R], [P, P, P]], np.int8))
    expected = softplus(-0.2) + (softplus(-0.3) + softplus(0.4)) / 2
    np.testing.assert_allclose(bco(table, shift='none'), [expected, 0.0], rtol=1e-6)


@given(SEEDS)
def test_running_shift_over_three_tables_is_the_mean_of_all_rewards(seed):
    loss = make_loss('bco', {'beta': 0.3})
    state, seen = loss.nothing_carried(), []
    for step in range(3):
        table = random_table(seed + step)
        state = jax.tree.map(jnp.add, state, loss.carry(table))
        expected = TWINS['bco'](read(table), beta=0.3, seen=seen)
        np.testing.assert_allclose(loss.fn(table, state), expected, rtol=1e-4, atol=1e-5)
        ratio = table.logps.astype(np.float64) - table.ref_logps
        seen += [0.3 * r for r in ratio[is_own(table.roles)]]
    (met,) = state
    assert met.weight == len(seen)
    np.testing.assert_allclose(met.total / met.weight, np.mean(seen), rtol=1e-4, atol=1e-4)


def test_parts_of_a_batch_add_up_to_its_statistic():
    table = random_table(3)
    whole = bco_rewards(table)
    parts = [bco_rewards(jax.tree.map(lambda a, s=s: a[s], table)) for s in np.s_[:2, 2:]]
    added = parts[0] + parts[1]
    np.testing.assert_allclose(added.total, whole.total, rtol=1e-5, atol=1e-5)
    assert added.weight == whole.weight == is_own(table.roles).sum()


@pytest.mark.parametrize('shift', ['running', 'batch'])
def test_bco_shift_carries_no_gradient_but_counts(shift):
    table = widen(random_table(4))
    r = 0.1 * (table.logps - table.ref_logps)
    own, chosen = is_own(table.roles), table.roles == C
    d = r[own].mean()
    losses, gradients = value_and_gradients(make_loss('bco', {'shift': shift}), table)
    strong = (table.roles == R).sum(axis=1, keepdims=True)
    expected = np.where(chosen, -1 / (1 + np.exp(r - d)), 1 / (1 + np.exp(d - r)) / strong)
    np.testing.assert_allclose(gradients[0], 0.1 * np.where(own, expected, 0), rtol=1e-9)
    assert not np.allclose(losses, values(make_loss('bco', {'shift': 'none'}), table))


def test_what_is_carried_is_used_only_by_the_running_shift():
    table = random_table(5)
    carried = WeightedSum(jnp.float32(70.0), jnp.float32(10.0))
    assert not np.allclose(bco(table, carried=carried), bco(table))
    shifted = bco(table, shift='batch', carried=carried)
    np.testing.assert_array_equal(shifted, bco(table, shift='batch'))


def test_only_the_running_shift_carries():
    table = random_table(6)
    for shift in ('batch', 'none'):
        loss = make_loss('bco', {'shift': shift})
        assert loss.carry(table) == () == loss.nothing_carried()
    assert len(make_loss('bco', {}).carry(table)) == 1
