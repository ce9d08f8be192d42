"""Cached log-probs: found by content, refused when stale."""

import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epa_jax import reference, sharding
from epa_jax.models import transformer
from epa_jax.schema import MeshConfig
from epa_jax.types import Role, TokenGroup
from tests import tiny


def group(key, prompt, *responses):
    return TokenGroup(
        key=key,
        prompt_ids=np.array(prompt, np.int32),
        response_ids=tuple(np.array(r, np.int32) for r in responses),
        roles=np.array([Role.CHOSEN] + [Role.REJECTED] * (len(responses) - 1), np.int8),
        ratings=np.full(len(responses), np.nan, np.float32),
    )


GROUPS = [group(0, [1, 2], [3], [4, 5]), group(1, [6], [7, 8], [9])]


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_fingerprint_is_the_same_on_every_mesh(dtype):
    params = jax.tree.map(lambda p: p.astype(dtype), tiny.params())
    mesh = sharding.make_mesh(MeshConfig(1, 4, 2))
    axes = transformer.logical_axes(tiny.SPEC)
    placed = jax.device_put(params, sharding.param_shardings(mesh, params, axes))
    assert reference.fingerprint(params) == reference.fingerprint(placed)


def test_fingerprint_sees_one_changed_bit_and_swapped_elements():
    params = tiny.params()
    before = reference.fingerprint(params)
    flipped = jax.tree.map(lambda p: p, params)
    bits = params['norm'].view(jnp.uint32).at[3].set(params['norm'].view(jnp.uint32)[3] ^ 1)
    flipped['norm'] = bits.view(jnp.float32)
    assert reference.fingerprint(flipped) != before
    swapped = jax.tree.map(lambda p: p, params)
    swapped['embed'] = params['embed'][jnp.array([1, 0, *range(2, 48)])]
    assert reference.fingerprint(swapped) != before


def test_data_digest_sees_where_a_response_ends():
    moved = [group(0, [1, 2], [3, 4], [5]), GROUPS[1]]
    assert reference.data_digest(GROUPS) == reference.data_digest(list(GROUPS))
    assert reference.data_digest(GROUPS) != reference.data_digest(moved)
    assert reference.data_digest(GROUPS) != reference.data_digest(GROUPS[::-1])


def test_round_trip_and_identity(tmp_path):
    made_from = reference.identity(tiny.params(), 'float32', 1.0, GROUPS)
    path = reference.cache_path(str(tmp_path / 'cache'), made_from)
    logps = np.arange(4, dtype=np.float32).reshape(2, 2)
    reference.save(path, logps, made_from)
    np.testing.assert_array_equal(reference.load(path, (2, 2), made_from), logps)
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing partial left
    other = reference.identity(tiny.params(seed=1), 'float32', 1.0, GROUPS)
    assert reference.cache_path(str(tmp_path / 'cache'), other) != path
    desensitised = reference.identity(tiny.params(), 'float32', 0.5, GROUPS)
    assert reference.cache_path(str(tmp_path / 'cache'), desensitised) != path


def test_what_killed_runs_were_writing_is_removed(tmp_path):
    made_from = reference.identity(tiny.params(), 'float32', 1.0, GROUPS)
    names = ('ref_logps-a.safetensors.7.partial', 'ref_logps-b.8.partial', 'x.partial')
    old, new, other = (tmp_path / name for name in names)
    for path in (old, new, other):
        path.touch()
        age = 0 if path == new else reference.LEFT_SECONDS + 60
        os.utime(path, (time.time() - age,) * 2)
    path = tmp_path / 'ref_logps-c.safetensors'
    reference.save(path, np.zeros((2, 2), np.float32), made_from)
    assert set(tmp_path.iterdir()) == {path, new, other}  # which may be another run's


def test_stale_and_broken_files_are_refused(tmp_path):
    made_from = reference.identity(tiny.params(), 'float32', 1.0, GROUPS)
    path = tmp_path / 'ref.safetensors'
    reference.save(path, np.zeros((2, 2), np.float32), made_from)
    other = reference.identity(tiny.params(seed=1), 'bfloat16', 1.0, GROUPS)
    with pytest.raises(
        reference.StaleCacheError, match='other dtype, weights than this run'
    ):
        reference.load(path, (2, 2), other)
    with pytest.raises(reference.StaleCacheError, match=r'expected float32 \(3, 2\)'):
        reference.load(path, (3, 2), made_from)
    path.write_bytes(path.read_bytes()[:-6])
    with pytest.raises(reference.StaleCacheError, match='not a readable cache'):
        reference.load(path, (2, 2), made_from)
    with pytest.raises(reference.StaleCacheError, match='not a readable cache'):
        reference.load(tmp_path / 'absent.safetensors', (2, 2), made_from)
