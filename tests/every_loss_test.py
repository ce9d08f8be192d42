"""Every loss trains the tiny model; every loss can be chosen by its name."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from epa_jax import config
from epa_jax.config import ConfigError
from epa_jax.losses import LOSSES, make_loss
from epa_jax.metrics import finalise
from epa_jax.models.transformer import Compute
from epa_jax.prepare import loss_of
from epa_jax.train_step import Objective
from epa_jax.types import Role
from tests import tiny

# Columns: the chosen response, two strong negatives with falling ratings, a weak one.
ROLES = np.array([Role.CHOSEN, Role.REJECTED, Role.REJECTED, Role.WEAK], np.int8)
RATINGS = np.array([3.0, 2.0, 1.0, np.nan], np.float32)
SPEC = tiny.SPEC
COMPUTE = Compute(logprob_chunk=16)


@functools.cache
def batch():
    groups = tiny.random_groups(3, 6, responses=4)
    packed = tiny.pack_by_hand([groups[:3], groups[3:]], 96, 3, 4)
    real = packed.roles != Role.PAD
    reference = tiny.params(seed=1)
    return packed.replace(
        roles=np.where(real, ROLES, Role.PAD).astype(np.int8),
        ratings=np.where(real, RATINGS, np.nan).astype(np.float32),
        ref_logps=np.asarray(table_of(reference, packed).logps).reshape(real.shape),
    )


@jax.jit
def table_of(params, packed):
    """The model is compiled once here, not once a loss."""
    return Objective(SPEC, COMPUTE, make_loss('dpo', {'wpo': True})).policy_table(
        params, packed
    )


@jax.jit
def pull(params, packed, slopes):
    def total(params):
        return jnp.sum(slopes * table_of(params, packed).logps)

    return jax.grad(total)(params)


def train(loss, steps=12, lr=3e-3):
    """Losses and metrics before and after some updates on one batch."""
    objective = Objective(SPEC, COMPUTE, loss)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(lr))
    couple, measure = jax.jit(objective.couple), jax.jit(objective.measure)
    params, state = tiny.params(), optimizer.init(tiny.params())
    carried, history = loss.nothing_carried(), []
    for _ in range(steps):
        table = table_of(params, batch())
        history.append(finalise(measure(table, carried)))
        coupled = couple(table, carried)
        carried = coupled.loss_state
        grads = pull(params, batch(), coupled.slopes)
        updates, state = optimizer.update(grads, state)
        params = optax.apply_updates(params, updates)
    return history


OWN_METRIC = {'sft': 'logps/chosen'}  # it knows no other response
VALUES = {'discopop': {'tau': 1.0}}  # at its default the slope at margin 0 points down


@pytest.mark.parametrize('name', sorted(LOSSES))
def test_every_loss_falls_and_its_metric_improves(name):
    history = train(make_loss(name, VALUES.get(name, {})))
    before, after = history[0], history[-1]
    metric = OWN_METRIC.get(name, 'rewards/margins')
    assert all(np.isfinite(list(metrics.values())).all() for metrics in history)
    assert after['loss'] < before['loss'] - 1e-3
    assert after[metric] > before[metric] + 1e-3


@pytest.mark.parametrize(
    ('name', 'values'),
    [
        ('dpo', {'reference_free': True}),
        ('dpo', {'divergence': 'js'}),
        ('epa', {'divergence': 'forward_kl'}),
        ('dpo', {'divergence': 'alpha', 'divergence_alpha': 0.5}),
        ('epa', {'rating_margin': 0.5}),
        ('simpo', {'rating_margin': 0.5}),
        ('dpo', {'nll_weight': 0.1}),
        ('epa', {'wpo': True}),
        ('dpo', {'pairs': 'all'}),
        ('ipo', {'pairs': 'adjacent', 'tokens': 'mean'}),
        ('0.8*dpo + 0.2*bco + 0.01*sft', {}),
    ],
)
def test_modified_losses_train(name, values):
    history = train(make_loss(name, values))
    assert history[-1]['loss'] < history[0]['loss'] - 1e-3
    assert history[-1]['rewards/margins'] > history[0]['rewards/margins'] + 1e-3


def run_with(name, mode='cached', n_strong=1, n_weak=1):
    cfg = config.defaults()
    cfg.workdir, cfg.model.path, cfg.data.train = 'runs/x', 'model', 'pairs.jsonl'
    cfg.steps = 1
    cfg.loss.name = name
    cfg.reference.mode = mode
    cfg.data.n_strong, cfg.data.n_weak = n_strong, n_weak
    return config.resolve(cfg)


@pytest.mark.parametrize('mode', ['cached', 'in_step', 'none'])
@pytest.mark.parametrize('name', sorted(LOSSES))
def test_every_loss_is_chosen_by_name_in_every_reference_mode(name, mode):
    run = run_with(name, mode)
    if mode == 'none' and LOSSES[name].needs_reference:
        with pytest.raises(ConfigError, match=r'needs a reference.*reference_free'):
            loss_of(run)
    else:
        assert loss_of(run).name == name


def test_a_sum_is_chosen_by_name():
    assert loss_of(run_with('0.8*dpo + 0.2*bco')).needs.couples_prompts


def test_what_a_loss_needs_is_asked_for():
    with pytest.raises(ConfigError, match=r"'kto' needs data\.n_weak of at least 1"):
        loss_of(run_with('kto', n_weak=0))
