"""Splash attention, interpreted, against attention through a dense mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epa_jax import sharding
from epa_jax.models import attention, splash
from epa_jax.schema import MeshConfig
from tests.models.mask_test import packed


def test_on_several_devices_it_equals_dense_attention_with_a_window():
    tokens = packed(2, 150, responses=1)[1]._replace(branches=None)
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=2, tensor=2), jax.devices()[:4])
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, dout = (
        jax.random.normal(key, (2, 150, n, 8))
        for key, n in zip(keys, (4, 2, 2, 4), strict=True)
    )
    real = (tokens.segments != 0)[:, :, None, None]

    def run(**how):
        @jax.jit
        def values(*qkv):
            def attend(*qkv):
                return attention.attend(*qkv, tokens, sliding_window=4, **how)

            out, pull = jax.vjp(attend, *qkv)
            return jnp.where(real, out, 0), *pull(jnp.where(real, dout, 0))

        return values(q, k, v)

    found = run(backend='splash', mesh=mesh, interpret=True)
    for ours, theirs in zip(found, run(backend='xla'), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_shared_prompts_are_refused():
    x = jnp.zeros((2, 48, 1, 8))
    with pytest.raises(ValueError, match='cannot express rows with shared prompts'):
        splash.attend(x, x, x, packed(0, 48)[1], block=128, sliding_window=None)
