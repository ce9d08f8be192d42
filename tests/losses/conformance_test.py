"""What every loss of the table must satisfy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epa_jax.losses import LOSSES, make_loss
from epa_jax.types import ResponseTable, Role
from tests.losses import brute_force

EVERY = pytest.mark.parametrize('name', sorted(LOSSES))


def value_and_gradients(name, table):
    """Loss [N], and gradients of its sum by both log-probs."""

    def total(logps, ref_logps):
        loss = make_loss(name, {}).fn(table.replace(logps=logps, ref_logps=ref_logps))
        return jnp.sum(loss), loss

    both = (jnp.asarray(table.logps), jnp.asarray(table.ref_logps))
    gradients, loss = jax.grad(total, argnums=(0, 1), has_aux=True)(*both)
    return loss, gradients


def test_every_loss_has_a_brute_force_twin():
    assert set(brute_force.BRUTE_FORCE) == set(LOSSES)


@EVERY
@given(seed=st.integers(0, 10_000))
def test_equals_its_formula(name, seed):
    table = brute_force.random_table(seed)
    expected = [brute_force.BRUTE_FORCE[name](table, n) for n in range(6)]
    found = make_loss(name, {}).fn(table)
    assert found.shape == (6,)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=5e-6, atol=1e-6)


@EVERY
def test_gradient_equals_finite_differences(name):
    table = brute_force.random_table(7, prompts=2, responses=4, scale=5.0)
    loss = make_loss(name, {})
    with jax.enable_x64(True):
        logps = np.asarray(table.logps, np.float64)
        gradient = jax.grad(lambda x: jnp.sum(loss.fn(table.replace(logps=x))))(
            jnp.asarray(logps)
        )
        for index in np.ndindex(logps.shape):
            step = np.zeros_like(logps)
            step[index] = 1e-4
            up, down = (
                float(jnp.sum(loss.fn(table.replace(logps=jnp.asarray(logps + s)))))
                for s in (step, -step)
            )
            np.testing.assert_allclose(gradient[index], (up - down) / 2e-4, atol=1e-7)


@EVERY
@given(seed=st.integers(0, 10_000))
def test_order_of_responses_does_not_matter(name, seed):
    table = brute_force.random_table(seed)
    order = np.random.default_rng(seed).permutation(table.roles.shape[1])
    loss, gradients = value_and_gradients(name, table)
    permuted = jax.tree.map(lambda a: a[:, order], table)
    permuted_loss, permuted_gradients = value_and_gradients(name, permuted)
    np.testing.assert_allclose(permuted_loss, loss, rtol=1e-6, atol=1e-7)
    for gradient, other in zip(gradients, permuted_gradients, strict=True):
        np.testing.assert_allclose(other, gradient[:, order], rtol=1e-5, atol=1e-7)


@EVERY
@pytest.mark.parametrize('junk', [np.inf, -np.inf, np.nan])
def test_padding_columns_change_nothing(name, junk):
    table = brute_force.random_table(11)
    padded = ResponseTable(
        logps=np.pad(table.logps, ((0, 0), (2, 1)), constant_values=junk),
        ref_logps=np.pad(table.ref_logps, ((0, 0), (2, 1)), constant_values=junk),
        lengths=np.pad(table.lengths, ((0, 0), (2, 1))),
        roles=np.pad(table.roles, ((0, 0), (2, 1))),
    )
    loss, gradients = value_and_gradients(name, table)
    padded_loss, padded_gradients = value_and_gradients(name, padded)
    np.testing.assert_array_equal(padded_loss, loss)
    for gradient, other in zip(gradients, padded_gradients, strict=True):
        np.testing.assert_array_equal(other, np.pad(gradient, ((0, 0), (2, 1))))


@EVERY
@pytest.mark.parametrize('junk', [0.0, np.inf, np.nan])
def test_prompt_without_chosen_is_zero(name, junk):
    table = brute_force.random_table(13)
    roles, logps = table.roles.copy(), table.logps.copy()
    roles[2], logps[2] = [Role.REJECTED, Role.WEAK, Role.PAD, Role.PAD, Role.PAD], junk
    loss, gradients = value_and_gradients(name, table.replace(roles=roles, logps=logps))
    others = np.arange(6) != 2
    assert loss[2] == 0
    np.testing.assert_array_equal(loss[others], make_loss(name, {}).fn(table)[others])
    for gradient in gradients:
        np.testing.assert_array_equal(gradient[2], 0)
        assert np.all(np.isfinite(gradient))


@EVERY
@given(gap=st.floats(-1e4, 1e4, width=32), role=st.sampled_from([Role.REJECTED, Role.WEAK]))
def test_extreme_log_ratios_stay_finite(name, gap, role):
    table = brute_force.pair_table(gap, roles=(Role.CHOSEN, role))
    loss, gradients = value_and_gradients(name, table)
    np.testing.assert_allclose(
        loss[0], brute_force.BRUTE_FORCE[name](table, 0), rtol=1e-5, atol=1e-6
    )
    assert all(np.all(np.isfinite(g)) for g in gradients)


@pytest.mark.parametrize('name', sorted(n for n in LOSSES if LOSSES[n].needs_reference))
@given(shift=st.integers(-64, 64))
def test_shift_of_a_prompts_log_ratios_does_not_matter(name, shift):
    table = brute_force.random_table(17)
    moved = table.replace(logps=table.logps + np.float32(shift))
    fn = make_loss(name, {}).fn
    np.testing.assert_allclose(fn(moved), fn(table), rtol=1e-4, atol=1e-5)


@EVERY
def test_without_a_reference_it_works_or_says_so(name):
    table = brute_force.random_table(19).replace(ref_logps=None)
    loss = make_loss(name, {})
    if loss.needs_reference:
        with pytest.raises(ValueError, match=r'reference\.mode'):
            loss.fn(table)
    else:
        assert np.all(np.isfinite(loss.fn(table)))


@EVERY
def test_reference_of_another_shape_is_refused(name):
    table = brute_force.random_table(19)
    with pytest.raises(ValueError, match=r'one shape \[N, K\]'):
        make_loss(name, {}).fn(table.replace(ref_logps=table.ref_logps[:, :1]))
