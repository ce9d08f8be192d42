"""The optimiser step: packing, micro-batches and devices change nothing; bad steps skip."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from epa_jax import programs as programs_lib
from epa_jax import sharding, train_step
from epa_jax.coupling import sum_up
from epa_jax.frozen import NOTHING, Frozen
from epa_jax.losses import make_loss
from epa_jax.metrics import finalise
from epa_jax.models import transformer
from epa_jax.models.transformer import Compute
from epa_jax.optim import make_optimizer
from epa_jax.schema import MeshConfig, OptimConfig
from epa_jax.types import Role
from tests import tiny

GROUPS = tiny.random_groups(0, 8)
OPTIM = OptimConfig(lr=1e-2, schedule='constant', warmup_ratio=0.0)


def batches(layout, role_of=None):
    """Micro-batches of rows; every group carries the reference log-probs of its place.

    `role_of` maps the place of a response in its group to another role.
    """
    rng = np.random.default_rng(9)
    ref_by_group = rng.normal(-20, 3, (8, 3)).astype(np.float32)
    out = []
    for rows in layout:
        batch = tiny.pack_by_hand([[GROUPS[i] for i in row] for row in rows], 96, 4, 3)
        ref = np.zeros(batch.roles.shape, np.float32)
        for b, row in enumerate(rows):
            ref[b, : len(row)] = ref_by_group[row]
        roles = batch.roles.copy()
        for place, role in (role_of or {}).items():
            roles[..., place][roles[..., place] != Role.PAD] = role
        out.append(batch.replace(ref_logps=ref, roles=roles))
    return out


def one_step(
    layout,
    mesh_shape=(1, 1, 1),
    name='epa',
    optim=OPTIM,
    steps=1,
    params=None,
    role_of=None,
):
    devices = jax.devices()[: int(np.prod(mesh_shape))]
    mesh = sharding.make_mesh(MeshConfig(*mesh_shape), devices)
    params = tiny.params() if params is None else params
    axes = transformer.logical_axes(tiny.SPEC)
    params = jax.device_put(params, sharding.param_shardings(mesh, params, axes))
    compute = Compute(mesh=mesh, logprob_chunk=8)
    loss = make_loss(name, {})
    objective = train_step.Objective(tiny.SPEC, compute, loss)
    optimizer, _ = make_optimizer(optim, 10)
    carried = loss.nothing_carried()
    abstract = programs_lib.abstract_state(params, optimizer, mesh, carried)
    micro = batches(layout, role_of)
    programs = programs_lib.build(objective, optimizer, abstract, micro[0], mesh)
    state = jax.jit(
        lambda p: train_step.init_state(p, optimizer, carried),
        out_shardings=programs_lib.shardings(abstract),
    )(params)
    for _ in range(steps):
        placed = [programs.place(batch) for batch in micro]
        total, loss_state = sum_up(programs, loss, state, NOTHING, placed)
        state, metrics = programs.update(state, total, loss_state)
    return state, finalise(metrics), programs


ALL = [[[0, 1, 2, 3], [4, 5, 6, 7]]]


@pytest.mark.parametrize(
    'layout',
    [
        [[[7, 6, 5, 4], [3, 2, 1, 0]]],
        [[[0, 1], [2]], [[3, 4, 5], []], [[6], [7]]],
    ],
)
def test_accumulation_and_packing_equal_the_large_batch(layout):
    whole, whole_metrics, _ = one_step(ALL)
    parts, parts_metrics, _ = one_step(layout)
    assert parts_metrics == pytest.approx(whole_metrics, rel=1e-4)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), whole.params, tiny.params())
    assert min(jax.tree.leaves(moved)) > 1e-3
    # moments are linear and quadratic in the gradient: sharper than Adam's first update
    for a, b in zip(
        jax.tree.leaves(whole.opt_state), jax.tree.leaves(parts.opt_state), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize('mesh_shape', [(2, 1, 1), (1, 2, 2), (2, 2, 2)])
@pytest.mark.parametrize('name', ['adamw', 'adafactor'])
def test_every_mesh_makes_the_same_step(mesh_shape, name):
    optim = OptimConfig(name=name, lr=1e-2, schedule='constant', warmup_ratio=0.0)
    layout = [[[0, 1], [2, 3], [4, 5], [6, 7]]]
    alone, alone_metrics, _ = one_step(layout, optim=optim)
    spread, spread_metrics, _ = one_step(layout, mesh_shape, optim=optim)
    assert spread_metrics == pytest.approx(alone_metrics, rel=1e-4)
    for a, b in zip(
        jax.tree.leaves(alone.opt_state), jax.tree.leaves(spread.opt_state), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=5e-3, atol=1e-5)
    gate = spread.params['layers']['gate']
    assert gate.addressable_shards[0].data.size * mesh_shape[1] * mesh_shape[2] == gate.size


def test_gradient_of_the_step_is_that_of_the_mean_loss():
    """Finite differences of the mean loss along a random direction."""
    optimizer = optax.sgd(1.0)
    (batch,) = batches(ALL)
    objective = train_step.Objective(tiny.SPEC, Compute(), make_loss('dpo', {'beta': 0.05}))
    params = tiny.params()
    total = objective.gradients(params, batch)
    state, metrics = train_step.update(
        train_step.init_state(params, optimizer), total, optimizer
    )
    gradient = jax.tree.map(jnp.subtract, params, state.params)
    keys = jax.random.split(jax.random.key(3), 20)
    direction = jax.tree.map(
        lambda p, k: jax.random.normal(k, p.shape),
        params,
        jax.tree.unflatten(
            jax.tree.structure(params), list(keys[: len(jax.tree.leaves(params))])
        ),
    )

    def loss(scale):
        moved = jax.tree.map(lambda p, d: p + scale * d, params, direction)
        table = objective.table(moved, batch)
        return finalise(objective.measure(table))['loss']

    step = 2e-4
    numeric = (loss(step) - loss(-step)) / (2 * step)
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
    analytic = sum(float(jnp.vdot(g, d)) for g, d in pairs)
    assert numeric == pytest.approx(analytic, rel=2e-2)
    assert finalise(metrics)['grad_norm'] == pytest.approx(
        float(optax.tree.norm(gradient)), rel=1e-4
    )


def test_a_step_that_is_not_finite_is_skipped_and_counted():
    optimizer, _ = make_optimizer(OPTIM, 10)
    (batch,) = batches(ALL)
    objective = train_step.Objective(tiny.SPEC, Compute(), make_loss('epa', {}))
    state = train_step.init_state(tiny.params(), optimizer)
    good = objective.gradients(state.params, batch)
    bad = jax.tree.map(lambda x: x, good)
    bad.grads['norm'] = bad.grads['norm'].at[0].set(jnp.nan)
    for expected in (1, 2):
        state, metrics = train_step.update(state, bad, optimizer)
        assert finalise(metrics)['skipped_updates'] == expected
        assert int(state.skipped_in_a_row) == expected
    jax.tree.map(np.testing.assert_array_equal, state.params, tiny.params())
    state, _ = train_step.update(state, good, optimizer)
    assert (int(state.step), int(state.skipped), int(state.skipped_in_a_row)) == (3, 2, 0)
    assert not np.array_equal(state.params['norm'], tiny.params()['norm'])


def test_nothing_is_traced_twice_over_many_steps():
    _, _, programs = one_step(ALL * 2, (1, 2, 1), steps=4)
    assert programs.traces == {'accumulate': 1, 'update': 1}


def test_in_step_reference_equals_its_cached_log_probs():
    (batch,) = batches(ALL)
    reference = tiny.params(seed=5)
    objective = train_step.Objective(tiny.SPEC, Compute(), make_loss('epa', {}))
    in_step = objective.gradients(
        tiny.params(), batch.replace(ref_logps=None), Frozen(None, reference, in_step=True)
    )
    table = objective.table(reference, batch.replace(ref_logps=None))
    cached = batch.replace(ref_logps=np.asarray(table.logps).reshape(batch.roles.shape))
    cached = objective.gradients(tiny.params(), cached)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        in_step.grads,
        cached.grads,
    )
    assert finalise(in_step.metrics) == pytest.approx(finalise(cached.metrics), rel=1e-5)
