import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epa_jax.losses import rewards
from epa_jax.losses.rewards import (
    chosen_value,
    implicit_rewards,
    log_ratios,
    mean_over,
    role_masks,
)
from epa_jax.types import ResponseTable, Role
from tests.losses.brute_force import random_table


def by_hand():
    return ResponseTable(
        logps=np.array([[-3.0, -8.0, np.inf], [-1.0, np.nan, -2.0]], np.float32),
        ref_logps=np.array([[-5.0, -4.0, np.nan], [-2.0, -2.0, -2.0]], np.float32),
        lengths=np.array([[2, 4, 0], [1, 1, 1]], np.int32),
        roles=np.array(
            [[Role.CHOSEN, Role.WEAK, Role.PAD], [Role.REJECTED, Role.WEAK, Role.PAD]],
            np.int8,
        ),
    )


def test_rewards_are_scaled_log_ratios_and_zero_at_padding():
    np.testing.assert_array_equal(log_ratios(by_hand()), [[2, -4, 0], [0, 0, 0]])
    np.testing.assert_allclose(rewards(by_hand(), 0.5), [[1.0, -2.0, 0.0], [0.0] * 3])


def test_padding_has_no_gradient_and_no_nan():
    table = by_hand()
    gradient = jax.grad(lambda x: jnp.sum(rewards(table.replace(logps=x), 0.5) ** 2))
    found = gradient(jnp.asarray(table.logps))
    np.testing.assert_allclose(found, [[1.0, -2.0, 0.0], [0.0] * 3])


def test_reported_rewards_follow_the_loss():
    table = by_hand()
    np.testing.assert_allclose(implicit_rewards(table, 0.5)[0], [1.0, -2.0, 0.0])
    np.testing.assert_allclose(
        implicit_rewards(table, 0.5, mean_over_tokens=True)[0], [0.5, -0.5, 0.0]
    )
    free = table.replace(ref_logps=None)
    np.testing.assert_allclose(implicit_rewards(free, 2.0)[0], [-6.0, -16.0, 0.0])
    np.testing.assert_allclose(
        implicit_rewards(free, 2.0, mean_over_tokens=True)[0], [-3.0, -4.0, 0.0]
    )


def test_masks_leave_out_prompts_without_chosen():
    roles = [
        [Role.REJECTED, Role.CHOSEN, Role.WEAK],
        [Role.REJECTED, Role.PAD, Role.WEAK],
    ]
    zeros = np.zeros((2, 3), np.float32)
    table = ResponseTable(zeros, zeros, zeros.astype(np.int32), np.array(roles, np.int8))
    masks = role_masks(table)
    np.testing.assert_array_equal(masks.strong, [[True, False, False], [False] * 3])
    np.testing.assert_array_equal(masks.chosen, [[False, True, False], [False] * 3])
    np.testing.assert_array_equal(masks.weak, [[False, False, True], [False] * 3])
    np.testing.assert_array_equal(masks.own, [[True, True, False], [False] * 3])


def test_no_reference_is_an_error_that_says_what_to_set():
    with pytest.raises(ValueError, match=r"set reference\.mode to 'cached' or 'in_step'"):
        rewards(by_hand().replace(ref_logps=None))


@pytest.mark.parametrize('cut', [np.s_[:, :1], np.s_[:1], np.s_[:, 0], np.s_[..., None]])
@pytest.mark.parametrize('key', ['ref_logps', 'log_q', 'log_collision', 'lengths'])
def test_shapes_that_would_broadcast_are_refused(key, cut):
    table = random_table(0, log_q=True)
    with pytest.raises(ValueError, match=r'one shape \[N, K\], found .*\(6, 5\)'):
        role_masks(table.replace(**{key: getattr(table, key)[cut]}))


def test_a_table_that_is_not_of_two_axes_is_refused():
    table = jax.tree.map(lambda a: a[0], random_table(0))
    with pytest.raises(ValueError, match=r'one shape \[N, K\]'):
        role_masks(table)


def test_chosen_value_and_mean_over_ignore_what_is_masked():
    table = by_hand()
    np.testing.assert_array_equal(
        chosen_value(table.logps, role_masks(table)), [[-3.0], [0.0]]
    )
    mask = jnp.array([[True, True, False], [False] * 3])
    np.testing.assert_array_equal(mean_over(jnp.asarray(table.logps), mask), [-5.5, 0.0])
