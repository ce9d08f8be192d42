"""Packed, shared-prompt log-probs against one response at a time."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from epa_jax import logprobs, sharding
from epa_jax.models import transformer
from epa_jax.models.transformer import Compute
from epa_jax.schema import MeshConfig
from epa_jax.types import Role
from tests import tiny

VARIANTS = {
    'plain': tiny.SPEC,
    'window': dataclasses.replace(tiny.SPEC, sliding_window=4),
    'untied_bias': dataclasses.replace(
        tiny.SPEC, tie_embeddings=False, attention_bias=True, mlp_bias=True
    ),
}


def reference_sums(params, spec, groups):
    return jnp.stack(
        [
            jnp.stack([jnp.sum(tiny.sequence_logps(params, spec, p, r)) for r in rs])
            for p, rs in groups
        ]
    )


@pytest.mark.parametrize('variant', VARIANTS)
def test_packed_table_and_gradients_equal_one_response_at_a_time(variant):
    spec, params = VARIANTS[variant], tiny.params(VARIANTS[variant])
    groups = tiny.random_groups(1, 3)
    batch = tiny.pack_by_hand([groups[:2], groups[2:]], 64, 2, 3)
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3)))
    compute = Compute(remat='full', logprob_chunk=5)

    def packed(params):
        table = logprobs.response_table(params, batch, spec=spec, compute=compute)
        return jnp.sum(table.logps[:3] * weights), table

    def separate(params):
        sums = reference_sums(params, spec, groups)
        return jnp.sum(sums * weights), sums

    (_, table), got = jax.jit(jax.value_and_grad(packed, has_aux=True))(params)
    (_, sums), expected = jax.jit(jax.value_and_grad(separate, has_aux=True))(params)
    np.testing.assert_allclose(table.logps[:3], sums, rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(table.logps[3:], 0.0)  # the empty place
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), got, expected
    )


def test_rows_padding_and_order_do_not_matter():
    params, groups = tiny.params(), tiny.random_groups(2, 4)
    layouts = [
        ([groups], 160, 4),
        ([[g] for g in groups], 40, 1),
        ([groups[2:], [], groups[:2]], 96, 3),
    ]
    tables = []
    for rows, length, places in layouts:
        batch = tiny.pack_by_hand(rows, length, places, 3)
        table = jax.jit(
            lambda p, b: logprobs.response_table(p, b, spec=tiny.SPEC, compute=Compute())
        )(params, batch)
        tables.append(np.asarray(table.logps)[np.asarray(table.lengths).sum(1) > 0])
    np.testing.assert_allclose(tables[0], tables[1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(tables[0][[2, 3, 0, 1]], tables[2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('mesh_shape', [(8, 1, 1), (1, 4, 2), (2, 2, 2)])
def test_every_mesh_gives_the_same_table(mesh_shape):
    spec, params = tiny.SPEC, tiny.params()
    groups = tiny.random_groups(3, 8)
    batch = tiny.pack_by_hand([[g] for g in groups], 40, 1, 3)
    compute = Compute()
    alone = logprobs.response_table(params, batch, spec=spec, compute=compute)

    mesh = sharding.make_mesh(MeshConfig(*mesh_shape))
    placed = jax.device_put(
        params,
        sharding.param_shardings(mesh, params, transformer.logical_axes(spec)),
    )
    compute = Compute(mesh=mesh, vocab_block=7)
    table = jax.jit(lambda p, b: logprobs.response_table(p, b, spec=spec, compute=compute))(
        placed, sharding.place_batch(mesh, batch)
    )
    np.testing.assert_allclose(table.logps, alone.logps, rtol=1e-5, atol=1e-5)


def test_bfloat16_model_sums_in_float32():
    batch = tiny.pack_by_hand([tiny.random_groups(4, 2)], 96, 2, 3)
    compute = Compute(dtype='bfloat16')
    table = logprobs.response_table(tiny.params(), batch, spec=tiny.SPEC, compute=compute)
    assert table.logps.dtype == jnp.float32
    exact = logprobs.response_table(tiny.params(), batch, spec=tiny.SPEC, compute=Compute())
    np.testing.assert_allclose(table.logps, exact.logps, rtol=0.1, atol=0.5)


def compiled_gradient(vocab_size, batch):
    spec = dataclasses.replace(tiny.SPEC, vocab_size=vocab_size)
    compute = Compute(logprob_chunk=16, vocab_block=512, remat='full')

    def total(params):
        table = logprobs.response_table(params, batch, spec=spec, compute=compute)
        return jnp.sum(table.logps)

    return jax.jit(jax.grad(total)).lower(tiny.params(spec)).compile()


def test_no_buffer_of_the_compiled_gradient_holds_tokens_times_vocabulary():
    vocab = 4096
    groups = [tiny.random_groups(5, 4), tiny.random_groups(6, 4)]
    batch = tiny.pack_by_hand(groups, 192, 4, 3)
    compiled = compiled_gradient(vocab, batch)
    shapes = re.findall(r'(?:f32|bf16|pred|s32|u32)\[([\d,]+)\]', compiled.as_text())
    dims = [[int(n) for n in s.split(',')] for s in shapes]
    sizes = [np.prod(d) for d in dims if vocab in d]
    assert sizes, 'the compiled program no longer shows the vocabulary'
    head = vocab * tiny.SPEC.d_model
    assert max(sizes) <= head  # its weights and their gradient, nothing a token has
    growth = (
        compiled_gradient(2 * vocab, batch).memory_analysis().temp_size_in_bytes
        - compiled.memory_analysis().temp_size_in_bytes
    )
    assert growth <= 4 * head * 4  # copies of weights and gradient, no logits


@pytest.fixture(scope='module')
def rows():
    """Two prompts with three responses, the last one WEAK, and an empty place."""
    groups = tiny.random_groups(8, 2)
    batch = tiny.pack_by_hand([groups, []], 64, 2, 3)
    roles = batch.roles.copy()
    roles[0, :, 2] = Role.WEAK
    return groups, batch.replace(roles=roles)


def test_tokens_past_the_shortest_own_response_weigh_less(rows):
    groups, batch = rows
    table = logprobs.response_table(
        tiny.params(),
        batch,
        spec=tiny.SPEC,
        compute=Compute(logprob_chunk=5),
        tail_weight=0.25,
    )
    for n, (prompt, responses) in enumerate(groups):
        shortest = min(len(r) for r in responses[:2])
        assert any(len(r) > shortest for r in responses)
        for k, response in enumerate(responses):
            logps = tiny.sequence_logps(tiny.params(), tiny.SPEC, prompt, response)
            expected = logps[:shortest].sum() + 0.25 * logps[shortest:].sum()
            np.testing.assert_allclose(table.logps[n, k], expected, rtol=1e-4)
    np.testing.assert_array_equal(table.lengths, batch.lengths.reshape(4, 3))


def test_log_collision_is_the_mean_over_a_response(rows):
    groups, batch = rows
    table = logprobs.response_table(
        tiny.params(),
        batch,
        spec=tiny.SPEC,
        compute=Compute(logprob_chunk=5),
        collision=True,
    )
    for n, (prompt, responses) in enumerate(groups):
        for k, response in enumerate(responses):
            logps = tiny.sequence_distributions(tiny.params(), tiny.SPEC, prompt, response)
            expected = np.log(np.exp(2 * np.asarray(logps)).sum(axis=1)).mean()
            np.testing.assert_allclose(table.log_collision[n, k], expected, rtol=1e-4)
    np.testing.assert_array_equal(table.log_collision[2:], 0.0)
