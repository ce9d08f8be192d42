"""Every stage computes the same gradient, on rows that differ."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import factors, synthetic, task
from epa_jax.models.transformer import Compute
from tests import tiny

LENGTHS = [synthetic.Lengths(5, (3, 4, 2)), synthetic.Lengths(2, (6, 1, 3))]
SLOPES = np.array([[-1.0, 0.5, 2.0], [0.25, -3.0, 1.0]], np.float32)


@pytest.fixture(scope='module')
def goal():
    return synthetic.objective(tiny.SPEC, task.Ratio(1, 1), Compute(logprob_chunk=8))


@pytest.fixture(scope='module')
def made():
    groups = synthetic.groups(LENGTHS, tiny.SPEC.vocab_size)
    return {stage.name: stage for stage in factors.stages(groups, SLOPES)}


def total(goal, stage):
    grad, out = factors.gradient(goal), None
    for batch, slopes in zip(stage.batches, stage.slopes, strict=True):
        part = grad(tiny.params(), jax.tree.map(jnp.asarray, batch), slopes)
        out = part if out is None else jax.tree.map(jnp.add, out, part)
    return out


def test_taking_savings_away_keeps_the_gradient(goal, made):
    expected = total(goal, made['ours'])
    for name in ('prompt repeated', 'padded'):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4),
            expected,
            total(goal, made[name]),
        )
    assert float(jnp.max(jnp.abs(expected['embed']))) > 0.1


def test_rows_of_the_stages(made):
    shared = sum(n.prompt + sum(n.responses) for n in LENGTHS)
    repeated = sum(n.prompt + r for n in LENGTHS for r in n.responses)

    def real(stage):
        return sum(int(np.sum(batch.segments > 0)) for batch in stage.batches)

    assert real(made['ours']) == shared
    assert real(made['prompt repeated']) == real(made['padded']) == repeated
    assert made['padded'].cells == 6 * max(n.prompt + max(n.responses) for n in LENGTHS)
    assert made['whole head'].cells == made['padded'].cells
    scored = sum(int(batch.lengths.sum()) for batch in made['whole head'].batches)
    assert scored == repeated - 6  # all but the first token of each row
    assert [s.name for s in made.values() if s.reference] == ['reference', 'whole head']
