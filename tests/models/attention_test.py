"""Attention against plain softmax, the choice of a back end, kernels on many devices."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epa_jax import sharding
from epa_jax.models import attention, block_map, flash, mask, transformer
from epa_jax.models.transformer import Compute
from epa_jax.schema import MeshConfig
from tests import tiny
from tests.models.mask_test import packed


@pytest.mark.parametrize('backend', ['xla', 'spans'])
@pytest.mark.parametrize('length', [7, 256, 600])
def test_blocks_equal_plain_attention_with_repeated_heads(length, backend):
    rng = np.random.default_rng(0)
    q = jnp.asarray(rng.normal(size=(2, length, 4, 8)), jnp.float32)
    k, v = (jnp.asarray(rng.normal(size=(2, length, 2, 8)), jnp.float32) for _ in 'kv')
    arrays = (jnp.asarray(rng.integers(1, 4, (2, length)), jnp.int32) for _ in 'psb')
    tokens = mask.Tokens(*arrays)
    seen = mask.visible(tokens, None)[:, None]

    def plain(q, k, v):
        k, v = jnp.repeat(k, 2, axis=2), jnp.repeat(v, 2, axis=2)
        scores = jnp.einsum('bqnh,bknh->bnqk', q, k) / np.sqrt(8)
        weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
        return jnp.einsum('bnqk,bknh->bqnh', weights, v)

    def ours(q, k, v):
        return attention.attend(q, k, v, tokens, backend=backend)

    np.testing.assert_allclose(
        jax.jit(ours)(q, k, v), jax.jit(plain)(q, k, v), rtol=1e-5, atol=1e-5
    )

    def gradients(attend):
        return jax.jit(jax.grad(lambda *a: jnp.sum(jnp.sin(attend(*a))), (0, 1, 2)))(
            q, k, v
        )

    for a, b in zip(gradients(ours), gradients(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ('backend', 'platform', 'dtype', 'shared', 'chosen', 'reason'),
    [
        ('auto', 'cpu', 'float32', True, 'spans', None),
        ('auto', 'gpu', 'bfloat16', True, 'cudnn', None),
        ('auto', 'gpu', 'float32', True, 'xla', None),
        ('auto', 'tpu', 'float32', True, 'pallas', None),
        ('xla', 'tpu', 'float32', True, 'xla', None),
        ('splash', 'tpu', 'float32', False, 'splash', None),
        ('splash', 'tpu', 'float32', True, 'pallas', 'share a prompt'),
        ('splash', 'cpu', 'float32', False, 'xla', 'TPUs, this is a cpu'),
        ('pallas', 'gpu', 'float32', True, 'xla', 'TPUs, this is a gpu'),
        ('cudnn', 'gpu', 'bfloat16', True, 'cudnn', None),
        ('cudnn', 'gpu', 'float32', True, 'xla', '16-bit floats, not float32'),
        ('cudnn', 'cpu', 'bfloat16', True, 'xla', 'GPUs, this is a cpu'),
    ],
)
def test_the_machine_and_the_rows_decide_and_say_so_once(
    caplog, backend, platform, dtype, shared, chosen, reason
):
    attention._fall_back.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert attention.choose(backend, platform, dtype, shared=shared) == chosen
    if reason is None:
        assert caplog.messages == []
    else:
        (line,) = caplog.messages
        assert f'model.attention={backend}: falling back to {chosen}' in line
        assert reason in line


def test_cudnn_leaves_heads_and_rows_that_it_does_not_know_to_xla(caplog):
    attention._fall_back.cache_clear()
    tokens = packed(0, 61)[1]
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (2, 61, 4, 8), jnp.bfloat16) for key in keys)
    visible = mask.visible(tokens, None)
    with caplog.at_level(logging.WARNING):
        found = attention._cudnn(q, k, v, visible)
    assert 'rows of 61 tokens and heads 8 wide' in caplog.text
    expected = attention.attend(q, k, v, tokens, backend='xla')
    np.testing.assert_array_equal(found, expected)


def test_an_unknown_back_end_is_refused():
    x = jnp.zeros((1, 2, 2, 4))
    tokens = mask.Tokens(*jnp.zeros((3, 1, 2), jnp.int32))
    message = "attention back end 'flash': expected one of auto, xla, spans, pallas, splash"
    with pytest.raises(ValueError, match=message):
        attention.attend(x, x, x, tokens, backend='flash')


def test_kernels_on_eight_devices_equal_one(monkeypatch):
    """Rows of one device have other blocks to visit than those of another."""
    monkeypatch.setattr(flash, 'block_size', lambda length: 16)
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    tokens = jax.tree.map(
        lambda *rows: jnp.concatenate(rows), *(packed(seed, 48)[1] for seed in (0, 1))
    )
    counts = np.sum(block_map.visits(tokens, 5, 16), axis=(1, 2))
    assert len(set(counts.tolist())) > 1
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, dout = (
        jax.random.normal(key, (4, 48, n, 8))
        for key, n in zip(keys, (4, 2, 2, 4), strict=True)
    )
    real = (tokens.segments != 0)[:, :, None, None]

    def run(**how):
        @jax.jit
        def values(q, k, v, tokens):
            def attend(*qkv):
                return attention.attend(*qkv, tokens, sliding_window=5, **how)

            out, pull = jax.vjp(attend, q, k, v)
            return jnp.where(real, out, 0), *pull(jnp.where(real, dout, 0))

        return values(q, k, v, tokens)

    found = run(backend='pallas', mesh=mesh, interpret=True)
    for ours, theirs in zip(found, run(backend='xla'), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_the_decoder_computes_the_same_with_kernels_on_a_mesh():
    spec = dataclasses.replace(tiny.SPEC, sliding_window=6, n_layers=2)
    batch, tokens = packed(4, 48)
    real = batch.segments[..., None] != 0
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=2, tensor=2), jax.devices()[:4])

    def run(compute):
        @jax.jit
        def loss(params):
            hidden = transformer.hidden_states(
                params, batch.tokens, *tokens, spec=spec, compute=compute
            )
            return jnp.sum(jnp.where(real, jnp.sin(hidden), 0))

        return jax.value_and_grad(loss)(tiny.params(spec))

    kernels = Compute(attention='pallas', remat='full', mesh=mesh, interpret=True)
    found, expected = run(kernels), run(Compute())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), found, expected
    )
