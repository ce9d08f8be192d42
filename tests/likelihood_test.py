"""The gradient of a step with streams is that of its formula, however they are packed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epa_jax import programs as programs_lib
from epa_jax import sharding
from epa_jax.data.mixture import Portion
from epa_jax.frozen import NOTHING
from epa_jax.likelihood import add_streams, measure_streams
from epa_jax.losses import make_loss
from epa_jax.metrics import finalise
from epa_jax.models import transformer
from epa_jax.models.transformer import Compute
from epa_jax.optim import make_optimizer
from epa_jax.schema import MeshConfig, OptimConfig
from epa_jax.train_step import Accumulator, Objective
from tests import tiny

TEXTS = {
    'sft': tiny.random_groups(1, 4, responses=1),
    'pretrain': tiny.random_groups(2, 5, responses=1),
}
WEIGHTS = {'sft': 0.3, 'pretrain': 2.0}
PROMPTS = 6
TOKENS = {name: sum(len(y) for _, (y,) in texts) for name, texts in TEXTS.items()}


def packed(name, layout):
    texts = TEXTS[name]
    rows = [[[texts[i] for i in row] for row in rows] for rows in layout]
    return [tiny.pack_by_hand(part, 64, 5, 1) for part in rows]


def programs_on(mesh_shape=(1, 1, 1)):
    devices = jax.devices()[: int(np.prod(mesh_shape))]
    mesh = sharding.make_mesh(MeshConfig(*mesh_shape), devices)
    params = tiny.params()
    where = sharding.param_shardings(mesh, params, transformer.logical_axes(tiny.SPEC))
    params = jax.device_put(params, where)
    compute = Compute(mesh=mesh, logprob_chunk=8)
    objective = Objective(tiny.SPEC, compute, make_loss('mpo', {}))
    optimizer, _ = make_optimizer(OptimConfig(), 10)
    abstract = programs_lib.abstract_state(params, optimizer, mesh)
    example = tiny.pack_by_hand([[tiny.random_groups(0, 1, 2)[0]], []], 64, 1, 2)
    return programs_lib.build(objective, optimizer, abstract, example, mesh), params


def added(layouts, mesh_shape=(1, 1, 1)):
    programs, params = programs_on(mesh_shape)
    portions = {
        name: Portion(packed(name, layout), TOKENS[name])
        for name, layout in layouts.items()
    }
    total, metrics = add_streams(
        programs, programs.zero(), params, NOTHING, portions, WEIGHTS, PROMPTS
    )
    return jax.device_get(total), finalise(metrics), programs


def mean_nll(params, name):
    """One text at a time, through the whole softmax."""
    logps = [
        jnp.sum(tiny.sequence_logps(params, tiny.SPEC, prompt, answer))
        for prompt, (answer,) in TEXTS[name]
    ]
    return -sum(logps) / TOKENS[name]


ONE_ROW = {'sft': [[[0, 1, 2, 3], []]], 'pretrain': [[[0, 1, 2], [3, 4]]]}
SPREAD = {'pretrain': [[[4], [2, 0]], [[1, 3], []]], 'sft': [[[3], [0]], [[2], [1]]]}


@pytest.fixture(scope='module')
def exact():
    def total(params):
        return PROMPTS * sum(WEIGHTS[name] * mean_nll(params, name) for name in TEXTS)

    return jax.grad(total)(tiny.params())


@pytest.mark.parametrize(
    ('layouts', 'mesh'),
    [(ONE_ROW, (1, 1, 1)), (SPREAD, (1, 1, 1)), (ONE_ROW, (1, 2, 2))],
)
def test_gradients_and_metrics_are_those_of_the_mean_over_tokens(exact, layouts, mesh):
    total, metrics, programs = added(layouts, mesh)
    for found, expected in zip(
        jax.tree.leaves(total.grads), jax.tree.leaves(exact), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4)
    for name in TEXTS:
        assert metrics[f'{name}/nll'] == pytest.approx(
            float(mean_nll(tiny.params(), name)), 1e-4
        )
    assert programs.traces == {'imitate': 1}


def test_only_gradients_are_added():
    programs, params = programs_on()
    start = jax.tree.map(lambda x: x + 1, programs.zero())
    kept = jax.device_get(start)
    portions = {'sft': Portion(packed('sft', ONE_ROW['sft']), TOKENS['sft'])}
    total, _ = add_streams(
        programs, start, params, NOTHING, portions, {'sft': 0.0}, PROMPTS
    )
    assert isinstance(total, Accumulator)
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(total), strict=True):
        np.testing.assert_array_equal(a, b)


def test_held_out_text_is_measured_over_all_its_tokens():
    programs, params = programs_on()
    batches = {'sft': packed('sft', [[[0], [1]], [[2, 3], []]])}
    found = measure_streams(programs, params, NOTHING, batches)
    assert found == {'eval/sft/nll': pytest.approx(float(mean_nll(params, 'sft')), 1e-4)}
    assert measure_streams(programs, params, NOTHING, {}) == {}
