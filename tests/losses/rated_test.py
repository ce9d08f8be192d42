import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epa_jax.losses.pairwise import dpo
from epa_jax.losses.rated import rpo_bwd_kl, rpo_fwd_kl, rpo_sq
from epa_jax.types import Role
from tests.losses.brute_force import pair_table, random_table

EACH = pytest.mark.parametrize('loss', [rpo_sq, rpo_fwd_kl, rpo_bwd_kl])


def rated_pair(gap, rating_gap):
    ratings = np.array([[3.0 + rating_gap, 3.0]], np.float32)
    return pair_table(gap).replace(ratings=ratings)


def test_values_derived_by_hand():
    # h = log 3 and g = log 4: sigmoids 3/4 and 4/5
    table = rated_pair(10 * math.log(3), math.log(4) / 2)
    forward = 0.75 * math.log(0.75 / 0.8) + 0.25 * math.log(0.25 / 0.2)
    backward = 0.8 * math.log(0.8 / 0.75) + 0.2 * math.log(0.2 / 0.25)
    for loss, expected in (
        (rpo_sq, math.log(4 / 3) ** 2),
        (rpo_fwd_kl, forward),  # from the policy's coin to that of the ratings
        (rpo_bwd_kl, backward),
    ):
        found = loss(table, rating_scale=2.0)
        np.testing.assert_allclose(found, [expected], rtol=1e-3)


@EACH
@given(st.floats(0, 5), st.floats(0.1, 2), st.floats(0.05, 1))
def test_is_zero_and_flat_where_reward_gap_is_rating_gap(loss, rating_gap, scale, beta):
    table = rated_pair(np.float32(scale * rating_gap / beta), rating_gap)

    def total(logps):
        values = {'beta': beta, 'rating_scale': scale}
        return loss(table.replace(logps=logps), **values)[0]

    value, gradient = jax.value_and_grad(total)(jnp.asarray(table.logps))
    np.testing.assert_allclose(value, 0, atol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-4)


@EACH
@pytest.mark.parametrize('away', [-5.0, 5.0])
def test_pulls_towards_the_rating_gap_from_both_sides(loss, away):
    table = rated_pair(10.0 + away, 1.0)
    gradient = jax.grad(lambda x: loss(table.replace(logps=x))[0])(jnp.asarray(table.logps))
    assert np.sign(gradient[0, 0]) == np.sign(away)
    assert loss(table)[0] > 0


@given(st.floats(-50, 50))
def test_backward_kl_to_a_certain_label_is_dpo(gap):
    np.testing.assert_allclose(
        rpo_bwd_kl(rated_pair(gap, 60.0)), dpo(pair_table(gap)), rtol=1e-5, atol=1e-6
    )


@EACH
@pytest.mark.parametrize('pairs', ['all', 'adjacent'])
def test_equally_rated_pairs_aim_at_no_gap(loss, pairs):
    table = random_table(1)
    ratings = np.where(np.isnan(table.ratings), np.nan, 3.0).astype(np.float32)
    table = table.replace(ratings=ratings, logps=table.ref_logps)
    np.testing.assert_allclose(loss(table, pairs=pairs), 0, atol=1e-7)


@EACH
def test_no_ratings_is_an_error_that_says_what_to_use(loss):
    with pytest.raises(ValueError, match='needs ratings and the table has none; use rated'):
        loss(pair_table(1.0))


@EACH
def test_an_unknown_rating_is_loud(loss):
    table = random_table(2)
    ratings = np.where(table.roles == Role.CHOSEN, np.nan, table.ratings)
    assert np.all(np.isnan(loss(table.replace(ratings=ratings))))
