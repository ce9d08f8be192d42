"""Whole runs that train adapters: learning, resuming, exporting, memory."""

import json

import jax
import numpy as np
import pytest

from epa_jax import export
from epa_jax.checkpoints import CheckpointError
from epa_jax.config import ConfigError
from epa_jax.data.load import load_datasets
from epa_jax.formats.export import export_model
from epa_jax.formats.load import load_model
from epa_jax.formats.tokenizer import load_tokenizer
from epa_jax.loop import Loop
from epa_jax.models import lora
from epa_jax.policy import load_policy
from epa_jax.prepare import prepare
from epa_jax.schema import MeshConfig
from epa_jax.sharding import make_mesh
from epa_jax.train import train
from tests import small_run, tiny


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('lora')
    small_run.write(folder)
    params = tiny.params()
    params['embed'] *= 20  # of a tied head this small, adapters could not move a logit
    write_model(folder / 'model', params)
    return folder


def write_model(path, params):
    tokenizer = small_run.tokenizer()
    export_model(path, tiny.SPEC, params, tokenizer, 'float32', overwrite=True)


def config(folder, name, **changes):
    return small_run.config(folder, name, lora__rank=4, lora__alpha=8.0, **changes)


@pytest.fixture(scope='module')
def result(folder):
    changes = {'steps': 24, 'checkpoint__every': 12, 'checkpoint__keep_last': 2}
    return train(config(folder, 'run', optim__lr=1e-2, **changes))


def test_adapters_learn_and_the_base_stays(folder, result):
    before, after = result.summary['eval_first'], result.summary['eval_last']
    assert after['eval/loss'] < before['eval/loss'] - 0.15
    assert after['eval/rewards/accuracies'] > 0.7 > before['eval/rewards/accuracies']
    _, base = load_model(folder / 'model')
    for name in ('embed', 'norm'):
        np.testing.assert_array_equal(result.params[name], base[name])
    np.testing.assert_array_equal(result.params['layers']['q'], base['layers']['q'])
    spec = tiny.SPEC
    query, key = spec.n_heads * spec.head_dim, spec.n_kv_heads * spec.head_dim
    sides = 2 * (spec.d_model + query) + 2 * (spec.d_model + key)  # q, o; k, v
    sides += 3 * (spec.d_model + spec.d_ff)
    assert result.summary['trained_parameters'] == 4 * spec.n_layers * sides


def test_every_way_back_to_the_policy_agrees(folder, result, tmp_path):
    """Its export, its last checkpoint and the result of the run."""
    whole = lora.merge(result.params)
    mesh = make_mesh(MeshConfig(1, 4, 2))
    found = [load_policy(result.folder, mesh=mesh, step=step) for step in (None, 24)]
    export.main([str(result.folder), str(tmp_path / 'merged'), '--weights', 'float32'])
    merged = [policy.params for policy in found] + [load_model(tmp_path / 'merged')[1]]
    for params in merged:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6),
            params,
            whole,
        )
    earlier = load_policy(result.folder, mesh=mesh, step=12).params['layers']['q']
    assert np.abs(earlier - whole['layers']['q']).max() > 1e-3
    rounded = load_policy(result.folder, mesh=mesh, step=24, dtype='bfloat16').params
    np.testing.assert_array_equal(
        rounded['layers']['up'], merged[1]['layers']['up'].astype('bfloat16')
    )


def test_a_checkpoint_is_exported_as_an_adapter(folder, result, tmp_path, monkeypatch):
    words = [str(result.folder), str(tmp_path / 'adapter'), '--adapter', '--step', '24']
    export.main(words)
    ours, theirs = (
        (path / 'adapter_model.safetensors').read_bytes()
        for path in (tmp_path / 'adapter', result.folder / 'export')
    )
    assert ours == theirs
    config = json.loads((tmp_path / 'adapter/adapter_config.json').read_text())
    assert config['base_model_name_or_path'] == str(folder / 'model')
    full = train(small_run.config(folder, 'full', steps=2, export=False))
    words = ['export', str(full.folder), str(tmp_path / 'none'), '--adapter']
    monkeypatch.setattr('sys.argv', words)
    with pytest.raises(SystemExit) as stop:
        export.run_main()
    assert 'trained a whole model (lora.rank=0), no adapters' in str(stop.value)


def test_a_resumed_run_ends_as_one_that_was_not_cut(folder, monkeypatch):
    changes = {'steps': 6, 'checkpoint__every': 3, 'export': False}
    whole = train(config(folder, 'whole', **changes))
    original = Loop._save

    def save_then_stop(self, batches):
        original(self, batches)
        raise KeyboardInterrupt

    monkeypatch.setattr(Loop, '_save', save_then_stop)
    with pytest.raises(KeyboardInterrupt):
        train(config(folder, 'cut', **changes))
    monkeypatch.undo()
    resumed = train(config(folder, 'cut', **changes))
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)


def test_another_base_is_refused(tmp_path):
    small_run.write(tmp_path)
    train(config(tmp_path, 'run', steps=2, export=False))
    tokenizer = small_run.tokenizer()
    other = tiny.params(seed=3)
    export_model(tmp_path / 'model', tiny.SPEC, other, tokenizer, 'float32', overwrite=True)
    with pytest.raises(CheckpointError, match='were trained on other weights'):
        train(config(tmp_path, 'run', steps=2, export=False))
    with pytest.raises(CheckpointError, match='checkpoints/2: its adapters were trained'):
        load_policy(tmp_path / 'run', mesh=make_mesh(MeshConfig()))


def test_reference_modes_agree_and_need_no_second_copy(folder):
    """In the step the reference is the base: the program is given one model, not two."""
    runs = {
        mode: small_run.config(
            folder, mode, lora__rank=1, steps=3, export=False, reference__mode=mode
        )
        for mode in ('cached', 'in_step')
    }
    a, b = (train(run).summary['eval_last'] for run in runs.values())
    assert a == pytest.approx(b, rel=1e-3, abs=1e-4)
    given = {mode: argument_bytes(run) for mode, run in runs.items()}
    assert given['in_step'] <= given['cached']  # which has log-probs in its batches
    run = small_run.config(folder, 'x', steps=3, reference__mode='in_step')
    shapes = job_of(run).abstract.params
    model = sum(
        leaf.dtype.itemsize * np.prod(leaf.sharding.shard_shape(leaf.shape))
        for leaf in jax.tree.leaves(shapes)
    )
    # of the policy, the reference and the gradients of all, only the first is left
    adapters = given['in_step'] - (argument_bytes(run) - 2 * model)
    assert 0 < adapters < model


def job_of(run):
    tokenizer = load_tokenizer(run.model.path)
    return prepare(run, load_datasets(run.data, tokenizer, min_strong=1), tokenizer)


def argument_bytes(run):
    job = job_of(run)
    batch = job.programs.place(next(job.batches.train.steps()).preference[0])
    lowered = job.programs.accumulate.lower(
        job.programs.zero(), job.weights.trained, job.frozen, batch
    )
    return lowered.compile().memory_analysis().argument_size_in_bytes


def test_a_base_in_bfloat16_has_adapters_in_float32(folder, caplog):
    changes = {'model__param_dtype': 'bfloat16', 'model__compute_dtype': 'bfloat16'}
    found = train(config(folder, 'bf16', steps=4, **changes))
    assert found.params['embed'].dtype == 'bfloat16'
    assert found.params['layers']['q_lora_a'].dtype == 'float32'
    assert 'loses every update' not in caplog.text
    policy = load_policy(found.folder, mesh=make_mesh(MeshConfig()), step=4)
    product = np.einsum(
        'ldr,lrnh->ldnh',
        found.params['layers']['q_lora_a'],
        found.params['layers']['q_lora_b'],
    )
    base = np.asarray(found.params['layers']['q'], np.float32)
    np.testing.assert_allclose(policy.params['layers']['q'], base + product, atol=1e-6)


@pytest.mark.parametrize(
    ('modules', 'message'),
    [
        ('q_proj,embed_tokens', "'embed_tokens' is not 'all-linear' or a matrix"),
        ('q_porj', 'did you mean q_proj'),
        ('', "'' is not 'all-linear'"),
    ],
)
def test_modules_that_are_not_there_are_named(folder, modules, message):
    with pytest.raises(ConfigError, match=message):
        config(folder, 'x', lora__modules=modules)


def test_modules_may_be_chosen(folder):
    run = config(folder, 'some', steps=1, lora__modules='v_proj, q_proj', export=False)
    assert {name[0] for name in train(run).params['layers'] if '_lora_' in name} == {*'qv'}
