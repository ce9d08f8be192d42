import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epa_jax.losses.energy import epa
from epa_jax.losses.listwise import infonca, nca, pl_dpo
from epa_jax.losses.pairwise import dpo
from epa_jax.types import ResponseTable, Role
from tests.losses.brute_force import (
    forget_one_rating,
    forget_ratings,
    pair_table,
    random_table,
    softplus,
)

SEEDS = st.integers(0, 10_000)
LISTWISE = pytest.mark.parametrize('loss', [pl_dpo, infonca, nca])


def ranked_table(log_ratios, ratings):
    """One prompt of rated responses; the first of the best is the chosen one."""
    shape = (1, len(log_ratios))
    roles = np.full(shape, Role.REJECTED, np.int8)
    roles[0, int(np.argmax(ratings))] = Role.CHOSEN
    return ResponseTable(
        logps=np.array([log_ratios], np.float32),
        ref_logps=np.zeros(shape, np.float32),
        lengths=np.ones(shape, np.int32),
        roles=roles,
        ratings=np.array([ratings], np.float32),
    )


def apart(table):
    """The table with the chosen response rated above its prompt's others."""
    chosen = table.roles == Role.CHOSEN
    return table.replace(ratings=np.where(chosen, table.ratings + 1, table.ratings))


@given(SEEDS, st.floats(0.01, 1))
def test_of_two_responses_it_is_dpo(seed, beta):
    table = apart(random_table(seed, responses=2))
    pair = dpo(table, beta=beta)
    np.testing.assert_allclose(pl_dpo(table, beta=beta), pair, rtol=1e-5, atol=1e-6)
    hard = infonca(table, beta=beta, rating_temperature=0.0)
    np.testing.assert_allclose(hard, pair, rtol=1e-5, atol=1e-6)


def test_two_responses_rated_alike_teach_a_ranking_nothing():
    table = ranked_table([1.0, 3.0], [2.0, 2.0])
    np.testing.assert_array_equal(pl_dpo(table), [0.0])
    np.testing.assert_allclose(pl_dpo(forget_ratings(table)), dpo(table), rtol=1e-6)


def test_plackett_luce_is_a_distribution_over_rankings():
    log_ratios = [1.0, -2.0, 0.5, 3.0]
    total = sum(
        math.exp(-pl_dpo(ranked_table(log_ratios, ranks), beta=0.5)[0])
        for ranks in itertools.permutations([4.0, 3.0, 2.0, 1.0])
    )
    assert total == pytest.approx(1, rel=1e-5)


def test_plackett_luce_by_hand():
    # exp(r) = 1, 2, 4, 8 ranked upside down: 1/15, 2/14, 4/12
    table = ranked_table(np.log([1, 2, 4, 8]), [9.0, 5.0, 4.0, 2.0])
    expected = -math.log(1 / 15 * 2 / 14 * 4 / 12)
    np.testing.assert_allclose(pl_dpo(table, beta=1.0), [expected], rtol=1e-6)


def test_ties_share_a_denominator():
    # The two in the middle are drawn from all three that remain.
    table = ranked_table(np.log([1, 2, 4, 8]), [9.0, 4.0, 4.0, 2.0])
    expected = -math.log(1 / 15 * 2 / 14 * 4 / 14)
    np.testing.assert_allclose(pl_dpo(table, beta=1.0), [expected], rtol=1e-6)


@given(SEEDS)
def test_only_the_order_of_ratings_counts_in_a_ranking(seed):
    table = random_table(seed)
    warped = table.replace(ratings=np.exp(table.ratings))
    np.testing.assert_array_equal(pl_dpo(warped), pl_dpo(table))


@given(SEEDS)
def test_without_ratings_the_chosen_is_above_all(seed):
    table = random_table(seed)
    best_only = epa(table, weight_weak=0.0)
    for unrated in (table.replace(ratings=None), forget_ratings(table)):
        np.testing.assert_allclose(pl_dpo(unrated), best_only, rtol=1e-5, atol=1e-6)
    one_less = forget_one_rating(table, 2)
    np.testing.assert_allclose(pl_dpo(one_less)[2], best_only[2], rtol=1e-5, atol=1e-6)
    others = np.arange(6) != 2
    np.testing.assert_array_equal(pl_dpo(one_less)[others], pl_dpo(table)[others])


@given(SEEDS, st.floats(0.01, 1))
def test_at_temperature_zero_infonca_is_epa_without_weak_negatives(seed, beta):
    table = random_table(seed)
    hard = infonca(table.replace(ratings=None), beta=beta, rating_temperature=0.0)
    energy = epa(table, beta=beta, weight_weak=0.0)
    np.testing.assert_allclose(hard, energy, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('loss', [infonca, nca])
def test_temperature_zero_is_the_limit_where_the_chosen_is_the_best(loss):
    table = apart(random_table(6))
    limit = loss(table, rating_temperature=1e-4)
    np.testing.assert_allclose(loss(table, rating_temperature=0.0), limit, rtol=1e-6)


@given(st.floats(-30, 30), st.floats(-30, 30))
def test_nca_of_two_is_the_formula_of_pairs(a, b):
    # nca_pair: -log sigma(r_w) - log sigma(-r_w) / 2 - log sigma(-r_l) / 2
    table = pair_table(0.0)
    table = table.replace(logps=table.ref_logps + np.array([[a, b]], np.float32))
    found = nca(table, rating_temperature=0.0)
    expected = softplus(-0.1 * a) + 0.5 * softplus(0.1 * a) + 0.5 * softplus(0.1 * b)
    np.testing.assert_allclose(found, [expected], rtol=1e-5)


def test_infonca_with_targets_by_hand():
    # targets 1/4 and 3/4, softmax(r) 1/3 and 2/3
    table = ranked_table(np.log([1, 2]), np.log([1, 3]))
    found = infonca(table, beta=1.0, rating_temperature=1.0)
    expected = -(math.log(1 / 3) + 3 * math.log(2 / 3)) / 4
    np.testing.assert_allclose(found, [expected], rtol=1e-6)


def test_infonca_is_least_where_rewards_are_ratings():
    ratings = np.array([3.0, 1.0, 2.5])
    best = infonca(ranked_table(ratings, ratings), beta=1.0, rating_temperature=1.0)
    targets = np.exp(ratings) / np.exp(ratings).sum()
    np.testing.assert_allclose(best, -np.sum(targets * np.log(targets)), rtol=1e-6)
    for move in np.eye(3):
        moved = ranked_table(ratings + 0.1 * move, ratings)
        assert infonca(moved, beta=1.0, rating_temperature=1.0)[0] > best[0]


def test_responses_rated_alike_are_aimed_at_alike():
    table = ranked_table([1.0, 1.0, -4.0], [5.0, 5.0, 1.0])
    np.testing.assert_allclose(
        infonca(table, beta=1.0), [math.log(2 + math.exp(-5))], rtol=1e-6
    )


def test_nca_knows_the_level_of_rewards_and_infonca_does_not():
    table = random_table(7)
    higher = table.replace(logps=table.logps + 20)
    np.testing.assert_allclose(infonca(higher), infonca(table), rtol=1e-4, atol=1e-5)
    assert np.all(np.abs(nca(higher) - nca(table)) > 1e-3)


@LISTWISE
def test_weak_negatives_are_ignored(loss):
    table = random_table(5)
    without = np.where(table.roles == Role.WEAK, Role.PAD, table.roles)
    np.testing.assert_array_equal(loss(table), loss(table.replace(roles=without)))


@LISTWISE
def test_prompt_without_strong_negatives_gives_zero(loss):
    table = pair_table(3.0, roles=(Role.CHOSEN, Role.WEAK))
    table = table.replace(ratings=np.array([[3.0, np.nan]], np.float32))
    np.testing.assert_array_equal(loss(table), [0.0])


@pytest.mark.parametrize('loss', [infonca, nca])
def test_no_ratings_is_an_error_that_says_what_to_set(loss):
    with pytest.raises(ValueError, match=r'use rated data, or set rating_temperature to 0'):
        loss(random_table(0).replace(ratings=None))
    assert np.all(np.isfinite(loss(forget_ratings(random_table(0)), rating_temperature=0)))
