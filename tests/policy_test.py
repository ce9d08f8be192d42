"""One policy from an export, a checkpoint and a bare model."""

import jax
import numpy as np
import pytest

from epa_jax import sharding
from epa_jax.checkpoints import CheckpointError
from epa_jax.config import ConfigError
from epa_jax.formats.load import load_model
from epa_jax.policy import load_policy
from epa_jax.schema import MeshConfig
from epa_jax.train import train
from tests import small_run, tiny


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A run of four steps with checkpoints of steps 2 and 4, and its result."""
    folder = tmp_path_factory.mktemp('policy')
    small_run.write(folder)
    changes = {'steps': 4, 'checkpoint__every': 2, 'checkpoint__keep_last': 2}
    return train(small_run.config(folder, **changes))


def equal(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize('shape', [(1, 8, 1), (2, 2, 2)])
def test_export_and_last_checkpoint_are_what_was_trained(run, shape):
    mesh = sharding.make_mesh(MeshConfig(*shape))
    for step in (None, 4):
        policy = load_policy(run.folder, mesh=mesh, step=step)
        equal(policy.params, run.params)
        assert policy.spec == tiny.SPEC
        assert len(policy.tokenizer) == 48
        assert policy.params['embed'].sharding.mesh == mesh


def test_an_earlier_checkpoint_is_another_policy(run):
    mesh = sharding.make_mesh(MeshConfig())
    policy = load_policy(run.folder, mesh=mesh, step=2)
    assert not np.array_equal(policy.params['embed'], run.params['embed'])


def test_without_an_export_the_newest_checkpoint_is_read(run):
    mesh = sharding.make_mesh(MeshConfig())
    (run.folder / 'export').rename(run.folder / 'elsewhere')
    try:
        policy = load_policy(run.folder, mesh=mesh, dtype='bfloat16')
    finally:
        (run.folder / 'elsewhere').rename(run.folder / 'export')
    expected = run.params['layers']['q'].astype('bfloat16')
    np.testing.assert_array_equal(policy.params['layers']['q'], expected)
    assert policy.compute.dtype == 'bfloat16'


def test_a_bare_model(run):
    mesh = sharding.make_mesh(MeshConfig())
    model = run.folder.parent / 'model'
    equal(load_policy(model, mesh=mesh).params, load_model(model)[1])
    with pytest.raises(ConfigError, match=r'step=3: .*model is no run folder'):
        load_policy(model, mesh=mesh, step=3)


def test_what_is_not_there_is_named(run):
    mesh = sharding.make_mesh(MeshConfig())
    with pytest.raises(CheckpointError, match=r'no checkpoint of step 3; found \[2, 4\]'):
        load_policy(run.folder, mesh=mesh, step=3)
    config = run.folder / 'config.json'
    text = config.read_text()
    config.write_text('{}')
    try:
        with pytest.raises(ConfigError, match=r'config.json: expected the configuration'):
            load_policy(run.folder, mesh=mesh, step=2)
    finally:
        config.write_text(text)


def test_a_damaged_checkpoint_is_named(run):
    mesh = sharding.make_mesh(MeshConfig())
    state = run.folder / 'checkpoints' / '2' / 'state'
    state.rename(state.with_name('gone'))
    try:
        with pytest.raises(CheckpointError, match=r'checkpoints/2: cannot be read'):
            load_policy(run.folder, mesh=mesh, step=2)
    finally:
        state.with_name('gone').rename(state)
