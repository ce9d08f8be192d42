"""The check at step 0 passes where it must and says what differs."""

import math

import numpy as np
import pytest

from epa_jax import guard
from epa_jax.losses import make_loss
from epa_jax.types import ResponseTable, Role


def table(offset=0.0):
    logps = np.array([[-10.0, -20.0, -15.0, -30.0], [-1.0, -2.0, -3.0, -4.0]], np.float32)
    roles = np.array([[1, 2, 3, 3], [1, 2, 3, 0]], np.int8)
    changed = logps.copy()
    changed[1, 2] += offset
    return ResponseTable(changed, logps, np.ones((2, 4), np.int32), roles)


def test_equal_policy_and_reference_give_the_closed_forms():
    dpo = guard.check_start(table(), make_loss('dpo', {}), 'float32')
    assert dpo == pytest.approx(math.log(2))
    epa = guard.check_start(table(), make_loss('epa', {}), 'float32')
    assert epa == pytest.approx((math.log(4) + math.log(3)) / 2)


def test_a_policy_that_differs_is_named():
    message = 'Largest difference of log-probs: 5.0000 nats.*prompt 1.*response 2'
    with pytest.raises(guard.GuardError, match=message):
        guard.check_start(table(offset=5.0), make_loss('epa', {}), 'float32')


def test_prompts_that_are_padding_do_not_count():
    padded = table()
    padded.roles[1] = Role.PAD
    found = guard.check_start(padded, make_loss('epa', {}), 'float32')
    assert found == pytest.approx(math.log(4))


def test_a_steep_loss_may_differ_by_the_rounding_of_its_log_probs():
    ipo = make_loss('ipo', {'tokens': 'sum', 'beta': 0.1})
    pairs = table()
    pairs = ResponseTable(
        pairs.logps[:, :2], pairs.ref_logps[:, :2], pairs.lengths[:, :2], pairs.roles[:, :2]
    )
    pairs.logps[0, 0] += 0.3  # slope 10 for each pair: the mean loss moves by 1.5
    found = guard.check_start(pairs, ipo, 'bfloat16')
    assert abs(found - 25) > 1
    with pytest.raises(guard.GuardError, match='ipo loss'):
        guard.check_start(pairs, ipo, 'float32')
    pairs.logps[0, 0] += 3.0
    with pytest.raises(guard.GuardError, match=r'3\.3000 nats'):
        guard.check_start(pairs, ipo, 'bfloat16')
