import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epa_jax.losses.pairs import PAIRS, mean_over_pairs, pair_mask, sides
from epa_jax.types import ResponseTable, Role
from tests.losses.brute_force import forget_one_rating, pairs_of, random_table, read

C, R, W, P = Role.CHOSEN, Role.REJECTED, Role.WEAK, Role.PAD


def table_of(roles, ratings):
    shape = (1, len(roles))
    return ResponseTable(
        logps=-np.arange(1.0, 1 + len(roles), dtype=np.float32).reshape(shape),
        ref_logps=np.zeros(shape, np.float32),
        lengths=np.ones(shape, np.int32),
        roles=np.array([roles], np.int8),
        ratings=None if ratings is None else np.array([ratings], np.float32),
    )


def found(table, which):
    """Pairs as (i, j)."""
    return {(int(i), int(j)) for i, j in np.argwhere(pair_mask(table, which)[0])}


RATED = table_of([R, C, W, R, R, P], [2, 4, np.nan, 1, 2, np.nan])
TIED = table_of([C, R, R, R], [3, 3, 3, 1])


@pytest.mark.parametrize(
    ('table', 'which', 'pairs'),
    [
        (RATED, 'best_rest', {(1, 0), (1, 3), (1, 4)}),
        (RATED, 'all', {(1, 0), (1, 3), (1, 4), (0, 3), (4, 3)}),
        (RATED, 'adjacent', {(1, 0), (1, 4), (0, 3), (4, 3)}),
        (TIED, 'best_rest', {(0, 1), (0, 2), (0, 3)}),
        (TIED, 'all', {(0, 1), (0, 2), (0, 3), (1, 3), (2, 3)}),
        (TIED, 'adjacent', {(0, 1), (0, 2), (1, 3), (2, 3)}),
        (table_of([C, R, R], None), 'all', {(0, 1), (0, 2)}),
        (table_of([C, R, R], None), 'adjacent', {(0, 1), (0, 2)}),
        (table_of([C, R, R], [3, np.nan, 1]), 'all', {(0, 1), (0, 2)}),
        (table_of([C, W, W], [3, np.nan, np.nan]), 'all', set()),
        (table_of([R, R, W], [3, 2, np.nan]), 'all', set()),
    ],
)
def test_pairs_by_hand(table, which, pairs):
    assert found(table, which) == pairs


@given(st.integers(0, 10_000), st.sampled_from(PAIRS), st.booleans())
def test_pairs_are_those_of_the_ranks(seed, which, unknown):
    table = random_table(seed)
    if unknown:
        table = forget_one_rating(table, 0)
    mask = np.asarray(pair_mask(table, which))
    for n, prompt in enumerate(read(table)):
        expected = sorted((w.p, l.p) for w, l in pairs_of(prompt, which))
        ours = [(table.logps[n, i], table.logps[n, j]) for i, j in np.argwhere(mask[n])]
        assert sorted((float(a), float(b)) for a, b in ours) == expected


@given(st.integers(0, 10_000))
def test_all_is_the_closure_of_adjacent(seed):
    table = random_table(seed)
    reachable = np.asarray(pair_mask(table, 'adjacent'))
    for _ in range(5):
        reachable = reachable | (reachable.astype(int) @ reachable.astype(int) > 0)
    np.testing.assert_array_equal(reachable, pair_mask(table, 'all'))


def test_other_names_are_refused():
    with pytest.raises(ValueError, match=r"pairs='some': expected one of best_rest, all"):
        pair_mask(RATED, 'some')


def test_mean_over_pairs_weighs_each_pair_of_a_prompt_alike():
    losses = mean_over_pairs(RATED, 'best_rest', lambda w, l: w.logps - l.logps)
    np.testing.assert_allclose(losses, [((-2 + 1) + (-2 + 4) + (-2 + 5)) / 3])


def test_both_sides_carry_their_own_lengths_and_ratings():
    table = RATED.replace(lengths=np.array([[2, 4, 1, 5, 10, 0]], np.int32))

    def link(w, l):
        np.testing.assert_allclose(w.mean_logps[0, 1, 0], -2 / 4)
        np.testing.assert_allclose(l.mean_ratio[0, 0, 4], -5 / 10)
        return w.ratings - l.ratings

    np.testing.assert_allclose(mean_over_pairs(table, 'best_rest', link), [(2 + 3 + 2) / 3])


def test_unknown_ratings_leave_the_gradient_finite():
    table = table_of([C, R, R], [3, np.nan, 1])

    def total(logps):
        link = lambda w, l: jnp.exp(w.logps - l.logps)  # noqa: E731
        return jnp.sum(mean_over_pairs(table.replace(logps=logps), 'all', link))

    assert np.all(np.isfinite(jax.grad(total)(jnp.asarray(table.logps))))


def test_no_reference_is_an_error_that_says_what_to_set():
    good, _ = sides(RATED.replace(ref_logps=None))
    with pytest.raises(ValueError, match=r"set reference\.mode to 'cached' or 'in_step'"):
        _ = good.ratio
