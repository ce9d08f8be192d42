import numpy as np

from epa_jax.losses import rewards
from epa_jax.losses.rewards import role_masks
from epa_jax.types import ResponseTable, Role


def test_rewards_are_scaled_log_ratios_and_zero_at_padding():
    table = ResponseTable(
        logps=np.array([[-3.0, -8.0, np.inf]], np.float32),
        ref_logps=np.array([[-5.0, -4.0, np.nan]], np.float32),
        lengths=np.array([[2, 3, 0]], np.int32),
        roles=np.array([[Role.CHOSEN, Role.WEAK, Role.PAD]], np.int8),
    )
    np.testing.assert_allclose(rewards(table, 0.5), [[1.0, -2.0, 0.0]])


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
