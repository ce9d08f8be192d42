import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epa_jax.losses import LOSSES, make_loss
from epa_jax.losses.modifiers import (
    DIVERGENCES,
    add_rating_margin,
    drop_reference,
    use_divergence,
    wpo_weight,
)
from epa_jax.losses.pairwise import dpo
from epa_jax.types import ResponseTable, Role
from tests.losses import twins
from tests.losses.brute_force import random_table, read
from tests.losses.conformance_test import extreme_table
from tests.losses.measure import value_and_gradients, values, widen
from tests.losses.twins import TWINS

SEEDS = st.integers(0, 10_000)
CLOSE = {'rtol': 1e-9, 'atol': 1e-9}
OF_DIFFERENCES = sorted(
    n for n, needs in LOSSES.items() if needs.differences_only and needs.needs_reference
)
WITH_REFERENCE = sorted(n for n, needs in LOSSES.items() if needs.needs_reference)
SHIFTABLE = sorted(
    n for n, needs in LOSSES.items() if needs.shiftable and needs.ratings != 'always'
)


def by_hand():
    """Log-ratios log 2 (chosen) and log 1/4."""
    return ResponseTable(
        logps=np.array([[math.log(0.2), math.log(0.1)]], np.float32),
        ref_logps=np.array([[math.log(0.1), math.log(0.4)]], np.float32),
        lengths=np.array([[2, 4]], np.int32),
        roles=np.array([[Role.CHOSEN, Role.REJECTED]], np.int8),
        ratings=np.array([[4.0, 1.5]], np.float32),
    )


@pytest.mark.parametrize('name', WITH_REFERENCE)
def test_without_reference_log_ratios_are_log_probs(name):
    table = widen(random_table(1))
    loss = make_loss(name, {'reference_free': True})
    assert not loss.needs_reference
    expected = TWINS[name](twins.without_reference(read(table)))
    np.testing.assert_allclose(values(loss, table), expected, **CLOSE)
    bare = table.replace(ref_logps=None)
    np.testing.assert_array_equal(values(loss, bare), values(loss, table))


def test_dropping_the_reference_drops_its_junk():
    table = by_hand()
    junk = table.replace(ref_logps=np.full_like(table.logps, np.nan))
    np.testing.assert_array_equal(drop_reference(junk).ref_logps, 0)


@pytest.mark.parametrize(
    ('divergence', 'alpha', 'expected'),
    [
        ('reverse_kl', 0.0, [math.log(2), -math.log(4)]),
        ('forward_kl', 0.0, [-1 / 2, -4]),
        ('js', 0.0, [math.log(4 / 3), math.log(0.5 / 1.25)]),
        ('alpha', 0.5, [2 * (1 - 2**-0.5), 2 * (1 - 2)]),
        ('alpha', 1.0, [1 / 2, -3]),
        ('alpha', 0.0, [math.log(2), -math.log(4)]),
    ],
)
def test_divergences_by_hand(divergence, alpha, expected):
    changed = use_divergence(by_hand(), divergence, alpha)
    found = np.asarray(changed.logps) - changed.ref_logps
    np.testing.assert_allclose(found, [expected], rtol=1e-5)


@pytest.mark.parametrize('name', OF_DIFFERENCES)
@pytest.mark.parametrize('divergence', DIVERGENCES)
def test_every_loss_of_differences_takes_every_divergence(name, divergence):
    values_of = {'divergence': divergence}
    if divergence == 'alpha':
        values_of['divergence_alpha'] = 0.3
    table = widen(random_table(2, scale=2.0))
    expected = TWINS[name](twins.with_divergence(read(table), divergence, 0.3))
    found = values(make_loss(name, values_of), table)
    np.testing.assert_allclose(found, expected, **CLOSE)


@pytest.mark.parametrize('name', OF_DIFFERENCES)
def test_reverse_kl_is_no_modifier(name):
    table = random_table(3)
    found = make_loss(name, {'divergence': 'reverse_kl'}).fn(table)
    np.testing.assert_allclose(found, make_loss(name, {}).fn(table), rtol=1e-5, atol=1e-6)


@given(SEEDS)
def test_alpha_runs_from_reverse_to_forward_kl(seed):
    table = widen(random_table(seed, scale=2.0))

    def found(**chosen):
        return values(make_loss('dpo', chosen), table)

    forward = found(divergence='forward_kl')
    at_one = found(divergence='alpha', divergence_alpha=1.0)
    np.testing.assert_allclose(at_one, forward, **CLOSE)  # they differ by a constant
    near_zero = found(divergence='alpha', divergence_alpha=1e-7)
    np.testing.assert_allclose(near_zero, found(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found(divergence='alpha', divergence_alpha=0.0), found())
    assert not np.allclose(forward, found())


@pytest.mark.parametrize('name', ['dpo', 'epa', 'ipo', 'discopop', 'pl_dpo', 'rpo_fwd_kl'])
@pytest.mark.parametrize(
    'chosen',
    [
        {'divergence': 'forward_kl'},
        {'divergence': 'js'},
        {'divergence': 'alpha', 'divergence_alpha': 0.7},
    ],
    ids=lambda chosen: chosen['divergence'],
)
def test_divergences_stay_finite_at_extreme_log_ratios(name, chosen):
    table = extreme_table(0)
    losses, gradients = value_and_gradients(make_loss(name, chosen), table)
    assert np.all(np.isfinite(losses))
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)


@pytest.mark.parametrize('name', ['dpo', 'simpo', 'bco', 'sft', 'cpo', 'orpo'])
def test_other_modifiers_stay_finite_at_extreme_log_ratios(name):
    chosen = {'wpo': True}
    if name not in ('cpo', 'orpo', 'sft'):
        chosen |= {'nll_weight': 2.0, 'rating_margin': 1.0}
    losses, gradients = value_and_gradients(make_loss(name, chosen), extreme_table(1))
    assert np.all(np.isfinite(losses))
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)


@pytest.mark.parametrize('name', SHIFTABLE)
def test_every_shiftable_loss_takes_a_rating_margin(name):
    table = widen(random_table(4))
    loss = make_loss(name, {'rating_margin': 0.7})
    assert loss.needs.ratings == 'always'
    moved = twins.with_rating_margin(
        read(table), 0.7, loss.beta, per_token=LOSSES[name].per_token
    )
    np.testing.assert_allclose(values(loss, table), TWINS[name](moved), **CLOSE)


@given(SEEDS, st.floats(0, 2), st.floats(0.05, 1))
def test_rating_margin_is_the_explicit_margin_of_each_pair(seed, scale, beta):
    table = random_table(seed, responses=2)
    chosen, rejected = (table.roles == role for role in (Role.CHOSEN, Role.REJECTED))
    gaps = table.ratings[chosen] - table.ratings[rejected]
    found = make_loss('dpo', {'rating_margin': scale, 'beta': beta}).fn(table)
    for n, gap in enumerate(gaps):
        row = jax.tree.map(lambda a, n=n: a[n : n + 1], table)
        expected = dpo(row, beta=beta, margin=scale * float(gap))[0]
        np.testing.assert_allclose(found[n], expected, rtol=1e-4, atol=1e-5)


def test_rating_margin_by_hand_also_between_negatives():
    # rewards 1, 0, 0 and ratings 5, 4, 2: pairs ask for 0.5, 1.5 and 1
    table = ResponseTable(
        logps=np.array([[10.0, 0.0, 0.0]], np.float32),
        ref_logps=np.zeros((1, 3), np.float32),
        lengths=np.ones((1, 3), np.int32),
        roles=np.array([[Role.CHOSEN, Role.REJECTED, Role.REJECTED]], np.int8),
        ratings=np.array([[5.0, 4.0, 2.0]], np.float32),
    )
    loss = make_loss('dpo', {'rating_margin': 0.5, 'pairs': 'all'})
    expected = np.mean(np.log1p(np.exp([-1 + 0.5, -1 + 1.5, 0 + 1.0])))
    np.testing.assert_allclose(loss.fn(table), [expected], rtol=1e-6)


def test_rating_margin_of_means_is_in_nats_of_reward():
    # simpo: mean log-probs times beta, less gamma, less 0.3 * (4 - 1.5)
    table = by_hand()
    loss = make_loss('simpo', {'rating_margin': 0.3, 'beta': 2.0, 'gamma': 0.5})
    h = 2 * (math.log(0.2) / 2 - math.log(0.1) / 4) - 0.5 - 0.75
    np.testing.assert_allclose(loss.fn(table), [math.log1p(math.exp(-h))], rtol=1e-5)


def test_each_term_of_a_sum_has_the_rating_margin_in_its_own_units():
    # The terms differ in beta (0.1 and 2) and in sums against means over tokens.
    table = random_table(5)
    both = make_loss('0.4*dpo + 0.6*simpo', {'rating_margin': 0.5}).fn(table)
    parts = [make_loss(n, {'rating_margin': 0.5}).fn(table) for n in ('dpo', 'simpo')]
    np.testing.assert_allclose(both, 0.4 * parts[0] + 0.6 * parts[1], rtol=1e-6)
    other = make_loss('0.6*simpo + 0.4*dpo', {'rating_margin': 0.5}).fn(table)
    np.testing.assert_allclose(other, both, rtol=1e-6)


def test_rating_margin_needs_ratings():
    with pytest.raises(ValueError, match=r'loss\.rating_margin needs ratings.*rated data'):
        add_rating_margin(by_hand().replace(ratings=None), 1.0)


@pytest.mark.parametrize('tokens', [None, 'mean', 'sum'])
@pytest.mark.parametrize('name', ['dpo', 'simpo', 'kto', 'aot', 'epa', 'orpo'])
def test_nll_is_added_exactly(name, tokens):
    table = widen(random_table(6))
    loss = make_loss(name, {'nll_weight': 0.7, 'nll_tokens': tokens})
    nll = twins.chosen_nll(read(table), tokens or 'mean')
    expected = np.array(TWINS[name](read(table))) + 0.7 * np.array(nll)
    np.testing.assert_allclose(values(loss, table), expected, **CLOSE)


def test_nll_is_that_of_the_policy_whatever_else_is_modified():
    table = widen(random_table(7, scale=2.0))
    chosen = {'divergence': 'js', 'rating_margin': 0.4}
    plain = values(make_loss('dpo', chosen), table)
    found = values(make_loss('dpo', chosen | {'nll_weight': 1.0}), table)
    np.testing.assert_allclose(
        found - plain, twins.chosen_nll(read(table), 'mean'), **CLOSE
    )


def collided(logps, log_collision, lengths=((2, 4),)):
    table = by_hand()
    return table.replace(
        logps=np.array([logps], np.float32),
        log_collision=np.array([log_collision], np.float32),
        lengths=np.array(lengths, np.int32),
    )


def test_wpo_weight_by_hand():
    # v = exp(-3/2 + 1/2) and exp(-6/4 + 1): e^-1 and e^-0.5
    table = collided([-3.0, -6.0], [-0.5, -1.0])
    np.testing.assert_allclose(wpo_weight(table), [math.exp(-1.5)], rtol=1e-6)


def test_wpo_weight_is_one_at_most_and_not_each_side():
    # v = e and e^-0.5: their product is above 1; e^0.25 and e^-0.5 below
    high = collided([-1.0, -6.0], [-1.5, -1.0])
    np.testing.assert_array_equal(wpo_weight(high), [1.0])
    mixed = collided([-1.0, -6.0], [-0.75, -1.0])
    np.testing.assert_allclose(wpo_weight(mixed), [math.exp(-0.25)], rtol=1e-6)


@given(SEEDS)
def test_wpo_weight_is_the_mean_over_strong_negatives(seed):
    table = widen(random_table(seed))
    expected = twins.wpo_weights(read(table))
    with jax.enable_x64(True):
        np.testing.assert_allclose(wpo_weight(table), expected, **CLOSE)


@pytest.mark.parametrize('name', ['dpo', 'simpo', '0.5*dpo + 0.5*ipo', 'bco'])
def test_wpo_multiplies_loss_and_gradient_and_has_none_itself(name):
    table = widen(random_table(8))
    weight = np.array(twins.wpo_weights(read(table)))
    loss, weighted = make_loss(name, {}), make_loss(name, {'wpo': True})
    assert weighted.needs_collision
    assert not loss.needs_collision
    plain_losses, plain = value_and_gradients(loss, table)
    losses, gradients = value_and_gradients(weighted, table)
    np.testing.assert_allclose(losses, weight * plain_losses, **CLOSE)
    for gradient, unweighted in zip(gradients, plain, strict=True):
        expected = weight[:, None] * unweighted
        np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-14)


def test_wpo_does_not_weigh_the_nll():
    table = widen(random_table(9))
    found = values(make_loss('dpo', {'wpo': True, 'nll_weight': 0.3}), table)
    without = values(make_loss('dpo', {'wpo': True}), table)
    nll = 0.3 * np.array(twins.chosen_nll(read(table), 'mean'))
    np.testing.assert_allclose(found - without, nll, **CLOSE)


def test_wpo_needs_the_policy_s_confidence():
    with pytest.raises(ValueError, match=r'loss\.wpo needs log_collision.*collision=True'):
        wpo_weight(by_hand())


def test_wpo_weight_of_padding_is_zero_whatever_it_holds():
    table = random_table(10)
    roles = table.roles.copy()
    roles[1] = Role.PAD
    junk = np.where(roles == Role.PAD, np.nan, table.log_collision)
    logps = np.where(roles == Role.PAD, np.inf, table.logps)
    table = table.replace(roles=roles, log_collision=junk, logps=logps)
    weights = wpo_weight(table)
    assert weights[1] == 0
    assert np.all(np.isfinite(weights))
    gradient = jax.grad(
        lambda x: jnp.sum(make_loss('dpo', {'wpo': True}).fn(table.replace(logps=x)))
    )(jnp.asarray(logps))
    assert np.all(np.isfinite(gradient))
