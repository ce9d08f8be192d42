"""Losses that couple prompts: the whole step's table, however it was packed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epa_jax.coupling import gather, scatter
from epa_jax.losses import LOSSES, make_loss
from epa_jax.models.transformer import Compute
from epa_jax.train_step import Coupled, Objective
from epa_jax.types import ResponseTable, Role
from tests import tiny
from tests.train_step_test import ALL, batches, one_step

COUPLED = sorted(name for name in LOSSES if LOSSES[name].couples_prompts)


def table(roles, start):
    roles = np.array(roles, np.int8)
    values = np.arange(start, start + roles.size, dtype=np.float32).reshape(roles.shape)
    return ResponseTable(values, values + 0.5, roles.astype(np.int32), roles)


def test_gather_leaves_out_empty_places_and_scatter_puts_back():
    chosen, empty = [Role.CHOSEN, Role.REJECTED], [Role.PAD, Role.PAD]
    whole = gather([table([empty, chosen, empty], 0), table([chosen, chosen, empty], 10)])
    np.testing.assert_array_equal(whole.table.logps, [[2, 3], [10, 11], [12, 13]])
    np.testing.assert_array_equal(whole.table.ref_logps, whole.table.logps + 0.5)
    assert whole.table.ratings is None
    coupled = Coupled(jnp.asarray(whole.table.logps), jnp.array([7.0, 8.0, 9.0]))
    first, second = scatter(coupled, whole.places)
    np.testing.assert_array_equal(first.slopes, [[0, 0], [2, 3], [0, 0]])
    np.testing.assert_array_equal(second.slopes, [[10, 11], [12, 13], [0, 0]])
    np.testing.assert_array_equal(first.losses, [0, 7, 0])
    np.testing.assert_array_equal(second.losses, [8, 9, 0])


def test_there_are_losses_to_test():
    assert COUPLED == ['aot', 'aot_unpaired', 'bco', 'kto']


@pytest.mark.parametrize('name', ['bco', 'kto'])
def test_a_coupled_step_does_not_depend_on_its_micro_batches(name):
    weak = {2: Role.WEAK} if name == 'kto' else {}
    whole, whole_metrics, _ = one_step(ALL, name=name, steps=2, role_of=weak)
    layout = [[[0, 1], [2]], [[3, 4, 5], []], [[6], [7]]]
    parts, parts_metrics, programs = one_step(layout, name=name, steps=2, role_of=weak)
    assert parts_metrics == pytest.approx(whole_metrics, rel=1e-4)
    assert set(programs.traces) == {'table', 'couple', 'pull', 'update'}
    assert set(programs.traces.values()) == {1}
    for a, b in zip(
        jax.tree.leaves((whole.opt_state, whole.loss_state)),
        jax.tree.leaves((parts.opt_state, parts.loss_state)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=5e-3, atol=1e-5)


@pytest.mark.parametrize('mesh_shape', [(1, 2, 2), (2, 1, 1)])
def test_a_coupled_step_does_not_depend_on_the_devices(mesh_shape):
    layout = [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    alone, alone_metrics, _ = one_step(layout, name='aot_unpaired')
    spread, spread_metrics, _ = one_step(layout, mesh_shape, name='aot_unpaired')
    assert spread_metrics == pytest.approx(alone_metrics, rel=1e-4)
    for a, b in zip(
        jax.tree.leaves(alone.opt_state), jax.tree.leaves(spread.opt_state), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=5e-3, atol=1e-5)


def test_the_two_passes_equal_one_where_prompts_do_not_couple():
    (batch,) = batches(ALL)
    objective = Objective(tiny.SPEC, Compute(logprob_chunk=8), make_loss('epa', {}))
    direct = objective.gradients(tiny.params(), batch)
    coupled = objective.couple(objective.table(tiny.params(), batch), ())
    pulled = objective.pull(tiny.params(), batch, coupled)
    for a, b in zip(jax.tree.leaves(direct), jax.tree.leaves(pulled), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_what_is_carried_grows_by_what_the_step_saw():
    loss = make_loss('bco', {'beta': 0.5})
    objective = Objective(tiny.SPEC, Compute(), loss)
    roles = [[Role.CHOSEN, Role.REJECTED], [Role.CHOSEN, Role.PAD]]
    first = table(roles, 0).replace(logps=np.array([[4, 1], [7, np.nan]], np.float32))
    first = first.replace(ref_logps=np.zeros((2, 2), np.float32))
    (carried,) = objective.couple(first, loss.nothing_carried()).loss_state
    assert (float(carried.total), float(carried.weight)) == (6.0, 3.0)
    coupled = objective.couple(first, (carried,))
    assert float(coupled.loss_state[0].total) == 12.0
    np.testing.assert_allclose(coupled.losses, loss.fn(first, coupled.loss_state))
