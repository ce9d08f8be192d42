"""What stands beside the trained parameters: adapters' base and the reference."""

import jax
import numpy as np
import pytest

from epa_jax.frozen import Frozen
from epa_jax.losses import make_loss
from epa_jax.metrics import finalise
from epa_jax.models import lora
from epa_jax.models.transformer import Compute
from epa_jax.train_step import Objective
from tests import tiny
from tests.models.lora_test import SOME, adapters
from tests.train_step_test import ALL, batches

FOUND = adapters(tiny.SPEC, SOME)


def objective(name='epa'):
    return Objective(tiny.SPEC, Compute(logprob_chunk=8), make_loss(name, {}))


def merged():
    return lora.merge(lora.attach(tiny.params(), FOUND, SOME.scale))


def test_gradients_of_adapters_follow_from_those_of_the_merged_matrices():
    """W' = W + s A B, so dA = s dW' B^T and dB = s A^T dW'."""
    (batch,) = batches(ALL)
    frozen = Frozen(tiny.params(), scale=SOME.scale)
    found = objective().gradients(FOUND, batch, frozen)
    whole = objective().gradients(merged(), batch)
    assert finalise(found.metrics) == pytest.approx(finalise(whole.metrics), rel=1e-4)
    assert set(found.grads['layers']) == {n + e for n in ['q', 'o', 'down'] for e in ENDS}
    for name in SOME.matrices:
        grad = np.asarray(whole.grads['layers'][name])
        down, up = (np.asarray(FOUND['layers'][name + end]) for end in ENDS)
        for layer in range(tiny.SPEC.n_layers):
            size = down[layer].size // SOME.rank
            matrix = grad[layer].reshape(size, -1)
            a, b = down[layer].reshape(size, -1), up[layer].reshape(SOME.rank, -1)
            for end, expected in zip(
                ENDS, (SOME.scale * matrix @ b.T, SOME.scale * a.T @ matrix), strict=True
            ):
                got = np.asarray(found.grads['layers'][name + end][layer])
                np.testing.assert_allclose(
                    got.reshape(expected.shape), expected, rtol=1e-3, atol=1e-4
                )


ENDS = ('_lora_a', '_lora_b')


@pytest.mark.parametrize('other', [None, 5], ids=['base', 'another'])
def test_a_reference_in_the_step_is_the_base_or_another_model(other):
    (batch,) = batches(ALL)
    batch = batch.replace(ref_logps=None)
    reference = None if other is None else tiny.params(seed=other)
    frozen = Frozen(tiny.params(), reference, in_step=True, scale=SOME.scale)
    table = objective().table(FOUND, batch, frozen)
    expected = objective().table(merged(), batch)
    np.testing.assert_allclose(table.logps, expected.logps, rtol=1e-4)
    wanted = objective().table(reference or tiny.params(), batch)
    np.testing.assert_allclose(table.ref_logps, wanted.logps, rtol=1e-4)
    assert np.abs(table.logps - table.ref_logps).max() > 0.1


def test_streams_move_adapters_too():
    (batch,) = batches(ALL)
    frozen = Frozen(tiny.params(), scale=SOME.scale)
    nll = objective().nll(FOUND, batch, frozen)
    assert float(nll.total) == pytest.approx(
        float(objective().nll(merged(), batch).total), rel=1e-5
    )
    total = objective().gradients(FOUND, batch, frozen)
    more, _ = objective().imitate(total, FOUND, batch, 0.5, frozen)

    def value(found):
        return 0.5 * objective().nll(found, batch, frozen).total

    added = jax.grad(value)(FOUND)
    for name, leaf in more.grads['layers'].items():
        np.testing.assert_allclose(
            leaf - total.grads['layers'][name], added['layers'][name], rtol=1e-3, atol=1e-3
        )


def test_without_anything_beside_it_the_policy_is_what_is_trained():
    params = tiny.params()
    assert Frozen().policy(params) is params
    assert Frozen(params, params).reference_params() is None
