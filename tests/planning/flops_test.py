"""Operations counted by hand, and by XLA where nothing is scanned more than once."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from epa_jax.losses import make_loss
from epa_jax.models import lora as lora_lib
from epa_jax.models.lora import Lora
from epa_jax.models.transformer import Compute, abstract_params
from epa_jax.planning import flops
from epa_jax.train_step import Objective
from epa_jax.weights import Weights, flops_per_token
from tests import tiny

# d_model 16, d_ff 24, 3 layers, 4 query and 2 key-value heads of 8, vocabulary 48
LAYER = 16 * 32 + 2 * 16 * 16 + 32 * 16 + 3 * 16 * 24


def test_a_hand_count_of_one_pass():
    size = flops.sizes(tiny.SPEC)
    norms = 3 * 2 * 16 + 16
    assert size.layers == 3 * LAYER + norms
    assert size.head == 48 * 16
    tokens, scored, pairs = 10, 4, 55
    expected = 2 * (3 * LAYER + norms) * 10 + 2 * 768 * 4 + 3 * 4 * 32 * 55
    assert flops.forward(size, tokens, scored, pairs) == expected


def test_training_costs_three_passes_and_a_reference_one_more():
    size = flops.sizes(tiny.SPEC)
    once = flops.forward(size, 10, 4, 55)
    assert flops.training(size, 10, 4, 55) == 3 * once
    assert flops.training(size, 10, 4, 55, reference=True) == 4 * once


@pytest.mark.parametrize('lora', [None, Lora(2, 4.0)])
def test_the_data_report_counts_the_same(lora):
    size = flops.sizes(tiny.SPEC, lora)
    base = abstract_params(tiny.SPEC, jnp.float32)
    adapters = lora and lora_lib.abstract_adapters(tiny.SPEC, lora)
    weights = Weights(tiny.SPEC, base, lora, adapters)
    every_token_scored = flops.training(size, 1, 1, 0)
    assert every_token_scored == pytest.approx(flops_per_token(weights))


@pytest.mark.parametrize('remat', ['none', 'dots', 'full'])
def test_what_is_executed_is_what_xla_counts(remat):
    """One layer, one chunk, one block: XLA counts every loop body once, which is true."""
    spec = dataclasses.replace(
        tiny.SPEC, n_layers=1, d_model=128, d_ff=256, head_dim=32, vocab_size=512
    )
    groups = tiny.random_groups(0, 4)
    batch = tiny.pack_by_hand([groups[:2], groups[2:]], 64, 2, 3)
    compute = Compute(remat=remat, logprob_chunk=64)
    objective = Objective(spec, compute, make_loss('simpo', {}))
    params = abstract_params(spec, jnp.float32)
    counted = jax.jit(objective.gradients).lower(params, batch).cost_analysis()['flops']
    expected = flops.executed(flops.sizes(spec), 2, 64, 64, remat)
    whole_square = 4 * 128 * 2 * (64 * 64 - 64 * 65 / 2) * (4.5 if remat == 'full' else 3.5)
    assert counted == pytest.approx(expected + whole_square, rel=0.02)


def test_memory_traffic_grows_with_what_is_moved():
    size = flops.sizes(tiny.SPEC)

    def of(cells, remat):
        return flops.pass_bytes(tiny.SPEC, size, cells, 2, 100, 1, remat)

    weights = 2 * (size.layers + size.head) * 2
    assert of(0, 'none') == 3 * weights + 300
    assert of(0, 'full') - of(0, 'none') == weights
    assert of(20, 'none') - of(10, 'none') == of(10, 'none') - of(0, 'none') > 0
    assert flops.update_bytes(1000, 300) == 2300
