import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from epa_jax import optim, programs, sharding, train_step
from epa_jax.limits import CHOICES
from epa_jax.models import transformer
from epa_jax.schema import MeshConfig, OptimConfig
from tests import tiny

CONFIG = OptimConfig(
    lr=0.1, schedule='constant', warmup_ratio=0.0, b1=0.8, b2=0.9, eps=1e-3, clip_norm=0.0
)
BIASED = dataclasses.replace(tiny.SPEC, attention_bias=True, mlp_bias=True)


def small_params():
    rng = np.random.default_rng(0)
    return {
        'embed': rng.normal(size=(5, 4)),
        'layers': {'attn_norm': rng.normal(size=(2, 4)), 'q': rng.normal(size=(2, 4, 3))},
        'norm': rng.normal(size=4),
    }


def gradients(steps):
    rng = np.random.default_rng(1)
    shapes = jax.tree.map(np.shape, small_params(), is_leaf=lambda x: hasattr(x, 'shape'))
    return [
        jax.tree.map(
            lambda s: rng.normal(size=s), shapes, is_leaf=lambda s: isinstance(s, tuple)
        )
        for _ in range(steps)
    ]


def train(cfg, grads, dtype=jnp.float32):
    optimizer, _ = optim.make_optimizer(cfg, len(grads))
    params = jax.tree.map(lambda p: jnp.asarray(p, dtype), small_params())
    state = optimizer.init(params)
    for g in grads:
        g = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), g)
        updates, state = optimizer.update(g, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def numpy_adamw(cfg, grads, *, first_moment=True):
    """Loshchilov and Hutter's Algorithm 2 in float64; matrices named by hand."""
    trees = [jax.tree.leaves_with_path(small_params())]
    trees += [jax.tree.leaves_with_path(g) for g in grads]
    out = []
    for leaf in zip(*trees, strict=True):
        (path, param), history = leaf[0], [g for _, g in leaf[1:]]
        decay = cfg.weight_decay if path[-1].key in ('embed', 'q') else 0.0
        m, v = np.zeros_like(param), np.zeros_like(param)
        for t, g in enumerate(history, start=1):
            m, v = cfg.b1 * m + (1 - cfg.b1) * g, cfg.b2 * v + (1 - cfg.b2) * g * g
            top = m / (1 - cfg.b1**t) if first_moment else g
            step = top / (np.sqrt(v / (1 - cfg.b2**t)) + cfg.eps)
            param = param - cfg.lr * (step + decay * param)
        out.append(param)
    return out


@pytest.mark.parametrize('name', ['adamw', 'rmsprop'])
@pytest.mark.parametrize('weight_decay', [0.0, 0.3])
def test_equals_numpy(name, weight_decay):
    cfg = dataclasses.replace(CONFIG, name=name, weight_decay=weight_decay)
    grads = gradients(4)
    expected = numpy_adamw(cfg, grads, first_moment=name == 'adamw')
    found = jax.tree.leaves(train(cfg, grads)[0])
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_adafactor_factors_rows_and_columns():
    # One step: v = outer(row mean, column mean) / mean of g^2; then the update's root
    # mean square over the array is limited to 1.
    rng = np.random.default_rng(2)
    grad = rng.normal(size=(2, 128, 130))
    square = grad**2
    v = square.mean(2, keepdims=True) * square.mean(1, keepdims=True)
    step = grad / np.sqrt(v / square.mean((1, 2), keepdims=True))
    step /= max(1.0, np.sqrt(np.mean(step**2)))
    cfg = dataclasses.replace(CONFIG, name='adafactor')
    optimizer, _ = optim.make_optimizer(cfg, 1)
    params = {'layers': {'q': jnp.ones(grad.shape)}}
    grads = {'layers': {'q': jnp.asarray(grad, jnp.float32)}}
    updates, state = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(updates['layers']['q'], -cfg.lr * step, rtol=1e-4)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 2 * (128 + 130) + 10


@pytest.mark.parametrize('name', CHOICES['optim.name'])
def test_decay_is_decoupled_and_spares_norms(name):
    cfg = dataclasses.replace(CONFIG, name=name)
    decayed = dataclasses.replace(cfg, weight_decay=0.5)
    grads = gradients(1)
    plain, with_decay = train(cfg, grads)[0], train(decayed, grads)[0]
    start = small_params()
    np.testing.assert_allclose(
        with_decay['layers']['q'],
        plain['layers']['q'] - cfg.lr * 0.5 * start['layers']['q'],
        rtol=1e-4,
        atol=1e-6,
    )
    np.testing.assert_array_equal(with_decay['norm'], plain['norm'])
    np.testing.assert_array_equal(
        with_decay['layers']['attn_norm'], plain['layers']['attn_norm']
    )


def test_mask_of_a_whole_model():
    abstract = transformer.abstract_params(BIASED, jnp.float32)
    mask = optim.decay_mask(abstract)
    assert mask['layers'].keys() == abstract['layers'].keys()
    decayed = {name for name, on in mask['layers'].items() if on}
    assert decayed == {'q', 'k', 'v', 'o', 'gate', 'up', 'down'}
    assert mask['embed']
    assert not mask['norm']


@pytest.mark.parametrize('clip_norm', [0.0, 0.5, 1e3])
def test_clipping_is_of_the_global_norm(clip_norm):
    # With eps far above the gradients, the first Adam step is gradient / eps.
    cfg = dataclasses.replace(CONFIG, eps=1e6, clip_norm=clip_norm)
    grads = gradients(1)[0]
    norm = math.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(grads)))
    factor = clip_norm / norm if clip_norm == 0.5 else 1.0
    params = jax.tree.map(jnp.asarray, small_params())
    optimizer, _ = optim.make_optimizer(cfg, 1)
    updates, _ = optimizer.update(
        jax.tree.map(jnp.asarray, grads), optimizer.init(params), params
    )
    for update, g in zip(*map(jax.tree.leaves, (updates, grads)), strict=True):
        np.testing.assert_allclose(update, -cfg.lr / cfg.eps * factor * g, rtol=1e-5)


@pytest.mark.parametrize('name', CHOICES['optim.name'])
def test_state_is_float32_for_bfloat16_parameters(name):
    cfg = dataclasses.replace(CONFIG, name=name, weight_decay=0.1, clip_norm=1.0)
    params, state = train(cfg, gradients(2), jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype('bfloat16')}
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(state)}
    assert dtypes == {jnp.dtype('float32'), jnp.dtype('int32')}


def test_cosine_schedule_values():
    cfg = OptimConfig(lr=2.0, warmup_ratio=0.1, final_lr_ratio=0.25)
    schedule = optim.make_schedule(cfg, 100)

    def expected(step):
        if step < 10:
            return 2.0 * step / 10
        return 2.0 * (0.25 + 0.75 * 0.5 * (1 + math.cos(math.pi * (step - 10) / 90)))

    for step in (0, 1, 9, 10, 11, 55, 99, 100):
        np.testing.assert_allclose(schedule(step), expected(step), rtol=1e-5)
    np.testing.assert_allclose(schedule(100), 0.5, rtol=1e-5)


def test_linear_and_constant_schedule_values():
    linear = OptimConfig(lr=2.0, schedule='linear', warmup_ratio=0.5, final_lr_ratio=0.1)
    schedule = optim.make_schedule(linear, 4)
    np.testing.assert_allclose(
        [schedule(t) for t in range(5)], [0, 1, 2, 1.1, 0.2], rtol=1e-6
    )
    constant = dataclasses.replace(linear, schedule='constant', warmup_ratio=0.0)
    schedule = optim.make_schedule(constant, 4)
    np.testing.assert_allclose([schedule(t) for t in range(5)], 2.0)


@pytest.mark.parametrize('schedule', CHOICES['optim.schedule'])
@pytest.mark.parametrize(('warmup_ratio', 'total'), [(0.0, 1), (0.1, 1), (1.0, 3)])
def test_short_runs_have_finite_rates(schedule, warmup_ratio, total):
    cfg = OptimConfig(lr=1.0, schedule=schedule, warmup_ratio=warmup_ratio)
    values = [float(optim.make_schedule(cfg, total)(t)) for t in range(total)]
    assert all(0 <= v <= 1 for v in values)
    if warmup_ratio < 1:
        assert values[0] == 1.0


@pytest.mark.parametrize('name', CHOICES['optim.name'])
def test_sharded_update_equals_the_unsharded_one(name):
    cfg = dataclasses.replace(CONFIG, name=name, weight_decay=0.1, clip_norm=1.0)
    spec = dataclasses.replace(BIASED, d_model=128, d_ff=128)
    optimizer, _ = optim.make_optimizer(cfg, 2)
    params = tiny.params(spec)
    grads = jax.tree.map(jnp.sin, tiny.params(spec, seed=1))

    def updated(params, grads):
        state = train_step.init_state(params, optimizer)
        for _ in range(2):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            state = state.replace(params=params, opt_state=opt_state)
        return state

    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    axes = transformer.logical_axes(spec)
    where = sharding.param_shardings(mesh, params, axes)
    placed = jax.device_put(params, where)
    shardings = programs.shardings(programs.abstract_state(placed, optimizer, mesh))
    found = jax.jit(updated, out_shardings=shardings)(placed, jax.device_put(grads, where))
    assert not found.params['layers']['q'].sharding.is_fully_replicated
    expected = jax.jit(updated)(params, grads)
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_first_moment_in_bfloat16_is_adamw_with_rounded_moments():
    """By hand in float64, m rounded to bfloat16 after every update."""
    cfg = dataclasses.replace(CONFIG, mu_dtype='bfloat16')
    grads = gradients(6)
    params, state = train(cfg, grads)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(optax.tree.get(state, 'mu'))}
    assert dtypes == {jnp.dtype('bfloat16')}
    assert {leaf.dtype for leaf in jax.tree.leaves(optax.tree.get(state, 'nu'))} == {
        jnp.dtype('float32')
    }
    trees = [jax.tree.leaves(t) for t in (small_params(), params, *grads)]
    for leaf in zip(*trees, strict=True):
        expected, m, v = leaf[0].copy(), 0.0, 0.0
        for t, g in enumerate(leaf[2:], 1):
            exact = cfg.b1 * m + (1 - cfg.b1) * g
            v = cfg.b2 * v + (1 - cfg.b2) * g**2
            bias = np.sqrt(v / (1 - cfg.b2**t)) + cfg.eps
            expected -= cfg.lr * exact / (1 - cfg.b1**t) / bias
            m = np.asarray(jnp.asarray(exact, jnp.bfloat16), np.float64)
        np.testing.assert_allclose(leaf[1], expected, rtol=1e-4, atol=1e-5)
    plain, _ = train(CONFIG, grads)
    moved = [
        np.max(np.abs(np.asarray(a) - np.asarray(b)))
        for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(plain), strict=True)
    ]
    assert 0 < max(moved) < 6 * cfg.lr * 2**-6  # six updates of about lr, rounded
