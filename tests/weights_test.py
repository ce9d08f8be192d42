"""What a run trains, and what it costs."""

import dataclasses

import jax
import numpy as np
import pytest

from epa_jax.checkpoints import CheckpointError
from epa_jax.config import ConfigError
from epa_jax.models.lora import Lora
from epa_jax.schema import LoraConfig, MeshConfig
from epa_jax.sharding import make_mesh
from epa_jax.weights import (
    base_fingerprint,
    check_base,
    flops_per_token,
    load_reference,
    load_weights,
    lora_of,
)
from tests import small_run, tiny


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('weights')
    small_run.write(folder)
    return folder


@pytest.fixture(scope='module')
def mesh():
    return make_mesh(MeshConfig(1, 4, 2))


def test_adapters_of_a_configuration():
    assert lora_of(LoraConfig()) is None
    chosen = LoraConfig(4, 16.0, 'down_proj, q_proj', rank_stabilized=True)
    assert lora_of(chosen) == Lora(4, 16.0, ('q', 'down'), True)
    assert len(lora_of(LoraConfig(1)).matrices) == 7


def test_a_whole_model_is_trained_by_itself_and_its_reference_is_a_copy(folder, mesh):
    weights = load_weights(small_run.config(folder), mesh)
    assert weights.trained is weights.base
    assert weights.frozen().policy(weights.trained) is weights.trained
    reference = weights.frozen(in_step=True).reference_params()
    for a, b in zip(jax.tree.leaves(reference), jax.tree.leaves(weights.base), strict=True):
        assert a is not b
        np.testing.assert_array_equal(a, b)


def test_adapters_follow_the_seed_and_stand_on_the_base(folder, mesh):
    runs = [small_run.config(folder, lora__rank=2, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (load_weights(run, mesh) for run in runs)
    a, b, c = (w.trained['layers']['o_lora_a'] for w in (first, again, other))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)
    assert a.sharding.mesh == mesh
    assert a.addressable_shards[0].data.size * 2 == a.size  # heads, over tensor
    frozen = first.frozen(in_step=True)
    assert frozen.reference_params() is first.base
    assert first.frozen(other.base, in_step=True).reference_params() is other.base


def test_operations_of_a_token(folder, mesh):
    """2 for each parameter forward, 2 for the token's gradient, 2 for its own."""
    whole = load_weights(small_run.config(folder), mesh)
    size = sum(leaf.size for leaf in jax.tree.leaves(whole.base))  # tied: no look-up
    assert flops_per_token(whole) == 6 * size
    run = small_run.config(folder, lora__rank=3, lora__modules='v_proj')
    spec = tiny.SPEC
    own = spec.n_layers * 3 * (spec.d_model + spec.n_kv_heads * spec.head_dim)
    assert flops_per_token(load_weights(run, mesh)) == 4 * size + 6 * own


def test_another_base_is_told_from_the_saved_one():
    saved = base_fingerprint(tiny.params())
    check_base(saved | {'seed': 0}, tiny.params(), 'here')
    moved = tiny.params()
    moved['norm'] = moved['norm'].at[0].add(1e-3)
    for found in ((saved, moved), ({}, tiny.params())):
        with pytest.raises(CheckpointError, match='here: its adapters were trained on'):
            check_base(*found, 'here')


def test_a_reference_of_its_own(folder, mesh, tmp_path):
    weights = load_weights(small_run.config(folder), mesh)
    assert load_reference(small_run.config(folder), weights, mesh) is None
    small_run.write(tmp_path, seed=7)
    run = small_run.config(folder, reference__path=str(tmp_path / 'model'))
    found = load_reference(run, weights, mesh)
    assert not np.array_equal(found['embed'], weights.base['embed'])
    (tmp_path / 'b').mkdir()
    small_run.write(tmp_path / 'b', spec=dataclasses.replace(tiny.SPEC, d_ff=32))
    run = small_run.config(folder, reference__path=str(tmp_path / 'b/model'))
    with pytest.raises(ConfigError, match='differs from the policy in d_ff'):
        load_reference(run, weights, mesh)
