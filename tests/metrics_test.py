import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epa_jax.losses import make_loss
from epa_jax.metrics import finalise, preference_metrics
from epa_jax.types import ResponseTable, Role
from tests.losses import brute_force

BETA = 0.5


def by_hand():
    """Two prompts and one padding prompt; log-ratios (2, -3, 4, 1) and (1, 1)."""
    C, R, W, P = Role.CHOSEN, Role.REJECTED, Role.WEAK, Role.PAD
    return ResponseTable(
        logps=np.array(
            [[-8, -13, -6, -9], [-9, -9, np.nan, 0], [np.inf, np.nan, 1, 1]], np.float32
        ),
        ref_logps=np.full((3, 4), -10, np.float32),
        lengths=np.array([[3, 5, 7, 2], [4, 6, 0, 0], [0, 0, 0, 0]], np.int32),
        roles=np.array([[C, R, R, W], [C, R, P, P], [P, R, W, P]], np.int8),
    )


def test_values_derived_by_hand():
    found = finalise(preference_metrics(by_hand(), jnp.array([3.0, 5.0, 0.0]), BETA))
    expected = {
        'loss': 4.0,
        'rewards/chosen': (1.0 + 0.5) / 2,
        'rewards/rejected': ((-1.5 + 2.0) / 2 + 0.5) / 2,
        'rewards/weak': 0.5,
        'rewards/margins': ((2.5 - 1.0) / 2 + 0.0) / 2,
        'rewards/accuracies': (0.5 + 0.5) / 2,  # one of two won; one tie
        'logps/chosen': (-8 - 9) / 2,
        'logps/rejected': ((-13 - 6) / 2 - 9) / 2,
        'logps/weak': -9.0,
        'lengths/chosen': 3.5,
        'lengths/rejected': 6.0,
        'lengths/weak': 2.0,
    }
    assert found == pytest.approx(expected)


def test_without_reference_rewards_are_of_the_policy_alone():
    table = by_hand().replace(ref_logps=None)
    found = finalise(preference_metrics(table, jnp.zeros(3), BETA))
    assert found['rewards/chosen'] == pytest.approx(BETA * (-8 - 9) / 2)
    assert found['rewards/accuracies'] == pytest.approx((0.5 + 0.5) / 2)


def test_a_role_that_no_prompt_has_weighs_nothing():
    table = brute_force.pair_table(1.0)
    sums = preference_metrics(table, jnp.zeros(1), BETA)
    assert sums['rewards/weak'].weight == 0
    assert sums['rewards/weak'].total == 0
    assert 'rewards/weak' not in finalise(sums)
    empty = table.replace(roles=np.zeros_like(table.roles))
    assert finalise(preference_metrics(empty, jnp.zeros(1), BETA)) == {}


@given(st.integers(0, 10_000), st.integers(1, 5))
def test_parts_of_a_batch_add_up_to_the_whole(seed, cut):
    table = brute_force.random_table(seed)
    loss = make_loss('epa', {}).fn(table)
    whole = finalise(preference_metrics(table, loss, BETA))
    parts = [
        preference_metrics(jax.tree.map(lambda a, s=s: a[s], table), loss[s], BETA)
        for s in (slice(cut), slice(cut, None))
    ]
    added = finalise({k: parts[0][k] + parts[1][k] for k in parts[0]})
    assert added == pytest.approx(whole, rel=1e-4)


@given(st.integers(0, 10_000))
def test_metrics_agree_with_the_loss_they_accompany(seed):
    table = brute_force.random_table(seed, responses=2)
    loss = make_loss('dpo', {'beta': BETA})
    found = finalise(preference_metrics(table, loss.fn(table), loss.beta))
    ratios = [
        brute_force.of_role(table, n, Role.CHOSEN)[0]
        - brute_force.of_role(table, n, Role.REJECTED)[0]
        for n in range(6)
    ]
    assert found['rewards/margins'] == pytest.approx(BETA * np.mean(ratios), rel=1e-4)
    assert found['rewards/accuracies'] == pytest.approx(np.mean(np.array(ratios) > 0))
    losses = [brute_force.softplus(-BETA * ratio) for ratio in ratios]
    assert found['loss'] == pytest.approx(np.mean(losses), rel=1e-4)
