import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epa_jax.losses import make_loss
from epa_jax.losses.pairwise import dpo
from epa_jax.losses.reference_free import alphapo, cpo, mpo, orpo, simpo, slic
from epa_jax.types import ResponseTable, Role
from tests.losses.brute_force import random_table, sigmoid, softplus
from tests.losses.measure import value_and_gradients, widen

SEEDS = st.integers(0, 10_000)


def by_hand(p_chosen=-6.0, p_rejected=-10.0, lengths=(3, 2)):
    return ResponseTable(
        logps=np.array([[p_rejected, p_chosen]], np.float32),
        ref_logps=None,
        lengths=np.array([lengths[::-1]], np.int32),
        roles=np.array([[Role.REJECTED, Role.CHOSEN]], np.int8),
    )


@pytest.mark.parametrize(
    ('loss', 'values', 'expected'),
    [
        (cpo, {}, softplus(-0.4) + 6),
        (cpo, {'nll_weight': 0.5, 'nll_tokens': 'mean'}, softplus(-0.4) + 1),
        (slic, {}, 0.6),
        (slic, {'margin': 7.0}, 3.6),
        (slic, {'margin': 7.0, 'nll_tokens': 'mean'}, 3.2),
        (simpo, {}, softplus(0.5 - 2 * (-2 + 5))),
        (simpo, {'beta': 0.1, 'gamma': 0.5}, softplus(0.5 - 0.3)),
        (
            alphapo,
            {'beta': 0.01, 'alpha': 1.0},
            softplus(0.5 - (math.e**5 - math.e**2) / 100),
        ),
        (mpo, {}, -sigmoid(0.4)),
        (mpo, {'tokens': 'mean', 'beta': 1.0}, -sigmoid(3)),
    ],
)
def test_values_derived_by_hand(loss, values, expected):
    np.testing.assert_allclose(loss(by_hand(), **values), [expected], rtol=1e-5)


def test_orpo_by_hand():
    # geometric means 0.8 and 0.5: odds 4 and 1, -log sigmoid(log 4) = log(5 / 4)
    table = by_hand(3 * math.log(0.8), 2 * math.log(0.5))
    expected = -math.log(0.8) + 0.3 * math.log(5 / 4)
    np.testing.assert_allclose(orpo(table, beta=0.3), [expected], rtol=1e-5)


@pytest.mark.parametrize('p', [0.0, -1e-12, -1e-7, -1e4])
def test_orpo_is_finite_at_certainty(p):
    for table in (by_hand(p, -1.0), by_hand(-1.0, p), by_hand(p, p)):
        loss, gradient = jax.value_and_grad(
            lambda x, table=table: orpo(table.replace(logps=x))[0]
        )(jnp.asarray(table.logps))
        assert np.isfinite(loss)
        assert np.all(np.isfinite(gradient))


@given(SEEDS, st.floats(0.05, 2), st.floats(-1, 1))
def test_alphapo_tends_to_simpo(seed, beta, gamma):
    table = random_table(seed)
    plain = simpo(table, beta=beta, gamma=gamma)
    for alpha, tolerance in ((0.0, 1e-6), (1e-7, 1e-4), (-1e-7, 1e-4)):
        found = alphapo(table, beta=beta, gamma=gamma, alpha=alpha)
        np.testing.assert_allclose(found, plain, rtol=tolerance, atol=1e-6)
    assert not np.allclose(alphapo(table, beta=beta, gamma=gamma, alpha=0.5), plain)


@given(SEEDS)
def test_simpo_is_dpo_norm_with_a_margin_and_a_reference_of_one(seed):
    table = random_table(seed)
    loss = make_loss('sigmoid_norm', {'reference_free': True, 'beta': 2.0, 'margin': 0.5})
    np.testing.assert_allclose(loss.fn(table), simpo(table), rtol=1e-6)


@given(SEEDS, st.floats(0.01, 1))
def test_cpo_without_likelihood_is_dpo_without_reference(seed, beta):
    table = random_table(seed)
    free = make_loss('dpo', {'reference_free': True, 'beta': beta})
    np.testing.assert_allclose(
        cpo(table, beta=beta, nll_weight=0.0), free.fn(table), rtol=1e-6
    )


@pytest.mark.parametrize('against', ['none', 'reference'])
def test_gradient_of_mpo_is_that_of_dpo_times_the_probability(against):
    table = widen(random_table(3, responses=2, scale=5.0))
    if against == 'none':
        table = table.replace(ref_logps=np.zeros_like(table.logps))
    losses, gradients = value_and_gradients(make_loss('mpo', {'against': against}), table)
    _, dpo_gradients = value_and_gradients(make_loss('dpo', {}), table)
    chosen = table.roles == Role.CHOSEN
    ratio = table.logps - table.ref_logps
    h = 0.1 * (ratio[chosen] - ratio[table.roles == Role.REJECTED])
    probability = 1 / (1 + np.exp(-h))
    np.testing.assert_allclose(losses, -probability, rtol=1e-12)
    expected = dpo_gradients[0] * probability[:, None]
    np.testing.assert_allclose(gradients[0], expected, rtol=1e-10, atol=1e-15)
    assert np.ptp(probability) > 0.1


def test_mpo_learns_little_from_settled_and_from_hopeless_pairs():
    def slope(gap):
        table = by_hand(gap - 200, -200.0)
        return float(
            jax.grad(lambda x: mpo(table.replace(logps=x), beta=1.0)[0])(
                jnp.asarray(table.logps)
            )[0, 1]
        )

    assert slope(0.0) == pytest.approx(-0.25)
    assert abs(slope(20.0)) < 1e-8
    assert abs(slope(-20.0)) < 1e-8


@given(SEEDS)
def test_mpo_against_the_reference_is_dpo_s_probability(seed):
    table = random_table(seed, responses=2)
    expected = -np.exp(-np.asarray(dpo(table), np.float64))
    np.testing.assert_allclose(mpo(table, against='reference'), expected, rtol=1e-5)


@pytest.mark.parametrize('loss', [cpo, slic])
def test_likelihood_term_needs_a_pair(loss):
    table = by_hand().replace(roles=np.array([[Role.WEAK, Role.CHOSEN]], np.int8))
    np.testing.assert_array_equal(loss(table), 0)
