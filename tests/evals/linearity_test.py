"""Pearson coefficients and slope-1 errors against closed forms."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from epa_jax.evals.linearity import centred, linearity

TRUE = np.array([[0.0, 1.0, 2.0], [3.0, -1.0, 1.0]])


def test_a_shifted_copy_is_on_the_line():
    found = linearity(TRUE + np.array([[5.0], [-2.0]]), TRUE)
    np.testing.assert_allclose(found.pearson, [1, 1])
    np.testing.assert_allclose(found.slope1_error, [0, 0], atol=1e-15)


def test_a_slope_other_than_1_costs_the_variance_times_its_square():
    # r_theta = a r_true: the residual is (a - 1) (r_true - mean), whatever the constant
    found = linearity(-0.5 * TRUE + 3, TRUE)
    np.testing.assert_allclose(found.pearson, [-1, -1])
    np.testing.assert_allclose(found.slope1_error, 1.5**2 * TRUE.var(axis=1))
    expected = 1.5 * np.mean(TRUE.std(axis=1))
    np.testing.assert_allclose(found.mean_slope1_root, expected)
    np.testing.assert_allclose(found.mean_slope1_error, 2.25 * TRUE.var(axis=1).mean())


def test_noise_orthogonal_to_the_truth_adds_its_variance():
    true, noise = np.array([[1.0, 1, -1, -1]]), np.array([[1.0, -1, 1, -1]])
    found = linearity(true + 2 * noise, true)
    np.testing.assert_allclose(found.slope1_error, [4])
    np.testing.assert_allclose(found.pearson, [5**-0.5])


def test_masked_responses_count_for_nothing():
    mask = np.array([[True, True, False, True]])
    true, learned = np.array([[1.0, 2, np.nan, 4]]), np.array([[2.0, 1, 99.0, 4]])
    found, alone = (
        linearity(learned, true, mask),
        linearity(learned[mask][None], true[mask][None]),
    )
    np.testing.assert_allclose(found.pearson, alone.pearson)
    np.testing.assert_allclose(found.slope1_error, alone.slope1_error)
    np.testing.assert_allclose(found.pearson, np.corrcoef([2, 1, 4], [1, 2, 4])[0, 1])


def test_a_constant_reward_has_no_coefficient_but_an_error():
    found = linearity(np.array([[0.1] * 3, [1, 2, 3.0]]), np.array([[0.0, 1, 2]] * 2))
    np.testing.assert_array_equal(np.isnan(found.pearson), [True, False])
    np.testing.assert_allclose(found.slope1_error[0], 2 / 3)
    assert found.mean_pearson == pytest.approx(1)


def test_prompts_of_one_response_say_nothing():
    mask = np.array([[True, False], [False, False]])
    found = linearity(np.ones((2, 2)), np.ones((2, 2)), mask)
    assert np.isnan(found.pearson).all()
    assert np.isnan(found.slope1_error).all()
    assert np.isnan(found.mean_slope1_error)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r'\(2, 3\), \(3,\)'):
        linearity(TRUE, TRUE[0])


VALUES = st.floats(-100, 100, allow_nan=False, width=32)


@hypothesis.given(hnp.arrays(np.float64, (2, 3, 6), elements=VALUES))
def test_agrees_with_numpy(rewards):
    true, learned = rewards
    found = linearity(learned, true)
    for n in range(3):
        # least squares for the constant alone
        design = np.ones((6, 1))
        gap = learned[n] - true[n]
        constant = np.linalg.lstsq(design, gap, rcond=None)[0]
        expected = np.mean((gap - design @ constant) ** 2)
        np.testing.assert_allclose(found.slope1_error[n], expected, rtol=1e-6, atol=1e-9)
        if min(true[n].std(), learned[n].std()) > 1e-3:
            np.testing.assert_allclose(
                found.pearson[n], np.corrcoef(true[n], learned[n])[0, 1], atol=1e-6
            )


def test_centred_rewards_have_mean_0():
    mask = np.array([[True, True, False], [True, False, False]])
    out = centred(np.array([[1.0, 3, np.inf], [5, 0, 0]]), mask)
    np.testing.assert_array_equal(out, [[-1, 1, 0], [0, 0, 0]])
