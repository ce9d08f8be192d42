"""Held-out metrics against numpy, whatever the batches, and with ties and padding."""

import types

import jax
import numpy as np
import pytest

from epa_jax.evals.preference import evaluate
from epa_jax.frozen import NOTHING
from epa_jax.losses import make_loss
from epa_jax.models import transformer
from epa_jax.train_step import Objective
from epa_jax.types import ResponseTable, Role, WeightedSum
from tests import tiny

BETA = 0.3
GROUPS = [((p * 2)[:4], rs) for p, rs in tiny.random_groups(3, 7, responses=2)]
COMPUTE = transformer.Compute(logprob_chunk=8)
OBJECTIVE = Objective(tiny.SPEC, COMPUTE, make_loss('dpo', {'beta': BETA}))
TABLE, MEASURE = jax.jit(OBJECTIVE.table), jax.jit(OBJECTIVE.measure)
# one row a batch: full and partly empty rows, and one without any group
LAYOUT = [[0, 1, 2], [3], [], [4, 5], [6]]


@pytest.fixture(scope='module')
def params():
    return tiny.params(seed=0)


@pytest.fixture(scope='module')
def logps(params):
    """Log-probs [7, 2] of each response, from a row of its own for every response."""
    tokens = np.zeros((14, 10), np.int32)  # what follows a response is not seen
    rows = [(prompt, ids) for prompt, responses in GROUPS for ids in responses]
    for row, (prompt, ids) in zip(tokens, rows, strict=True):
        row[: 4 + len(ids)] = [*prompt, *ids]
    places, ones = np.broadcast_to(np.arange(10), tokens.shape), np.ones_like(tokens)
    hidden_states = jax.jit(transformer.hidden_states, static_argnames=('spec', 'compute'))
    hidden = hidden_states(
        params, tokens, places, ones, 0 * ones, spec=tiny.SPEC, compute=COMPUTE
    )
    logits = np.asarray(hidden @ transformer.head_weights(params).T, np.float64)
    logps = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    out = [
        sum(found[3 + i, token] for i, token in enumerate(ids))
        for found, (_, ids) in zip(logps, rows, strict=True)
    ]
    return np.reshape(out, (7, 2))


@pytest.fixture(scope='module')
def ref_logps(logps):
    """Two prompts at which the policy equals its reference, so that they tie."""
    out = logps + np.random.default_rng(0).normal(0, 3, logps.shape)
    out[[1, 6]] = logps[[1, 6]]
    return out.astype(np.float32)


def batches(layout, ref_logps):
    for row in layout:
        batch = tiny.pack_by_hand([[GROUPS[i] for i in row]], 96, 3, 2)
        ref = np.full(batch.roles.shape, np.nan, np.float32)  # beyond the groups
        ref[0, : len(row)] = ref_logps[row]
        yield batch.replace(ref_logps=ref)


def run(params, ref_logps, layout=LAYOUT):
    programs = types.SimpleNamespace(
        place=lambda batch: batch,
        table=lambda params, frozen, batch: TABLE(params, batch, frozen),
        measure=MEASURE,
    )
    state = types.SimpleNamespace(params=params, loss_state=())
    return evaluate(programs, state, NOTHING, batches(layout, ref_logps))


def test_every_prompt_counts_once_and_padding_not_at_all(params, logps, ref_logps):
    found = run(params, ref_logps)
    rewards = BETA * (logps - ref_logps)
    margins = rewards[:, 0] - rewards[:, 1]
    lengths = np.array([[len(r) for r in responses] for _, responses in GROUPS])
    expected = {
        'loss': np.log1p(np.exp(-margins)).mean(),
        'rewards/chosen': rewards[:, 0].mean(),
        'rewards/rejected': rewards[:, 1].mean(),
        'rewards/margins': margins.mean(),
        'logps/chosen': logps[:, 0].mean(),
        'logps/rejected': logps[:, 1].mean(),
        'lengths/chosen': lengths[:, 0].mean(),
        'lengths/rejected': lengths[:, 1].mean(),
    }
    for name, value in expected.items():
        assert found.pop(f'eval/{name}') == pytest.approx(value, rel=1e-4, abs=1e-5), name
    assert set(found) == {'eval/rewards/accuracies'}


def test_accuracy_is_the_share_of_pairs_in_order(params, logps, ref_logps):
    # rounding must not decide the two ties, so the policy's own log-probs are their ref.
    table = jax.jit(lambda batch: OBJECTIVE.table(params, batch).logps)
    found = [np.asarray(table(batch)) for batch in batches(LAYOUT, ref_logps)]
    own = np.concatenate([t[: len(row)] for t, row in zip(found, LAYOUT, strict=True)])
    np.testing.assert_allclose(own, logps, rtol=1e-4)
    ref_logps = ref_logps.copy()
    ref_logps[[1, 6]] = own[[1, 6]]
    margins = np.diff(ref_logps - logps)[:, 0]
    decided = np.delete(margins, [1, 6])
    assert 0 < (decided > 0).sum() < 5  # some right, some wrong
    expected = ((decided > 0).sum() + 2 * 0.5) / 7
    assert run(params, ref_logps)['eval/rewards/accuracies'] == pytest.approx(expected)


def test_batches_of_other_sizes_give_the_same(params, ref_logps):
    found = run(params, ref_logps, [[6, 2, 0], [5, 3, 1], [4]])
    assert found == pytest.approx(run(params, ref_logps), rel=1e-4, abs=1e-5)


def fake_table(prompts):
    roles = np.full((prompts, 1), Role.CHOSEN, np.int8)
    values = np.zeros((prompts, 1), np.float32)
    return ResponseTable(values, values, values.astype(np.int32), roles)


def test_all_batches_are_measured_as_one_table_by_both_models():
    """So a loss that couples prompts does not depend on how they were packed."""
    seen, measured = [], []

    def table(params, frozen, batch):
        seen.append((params, frozen, batch))
        return fake_table(2)

    def measure(table, loss_state):
        measured.append((table.logps.shape, loss_state))
        return {'x': WeightedSum(3.0, 6.0), 'rewards/weak': WeightedSum(0.0, 0.0)}

    programs = types.SimpleNamespace(
        table=table, measure=measure, place=lambda batch: f'placed {batch}'
    )
    state = types.SimpleNamespace(params='policy', loss_state='carried')
    assert evaluate(programs, state, 'frozen', ['a', 'b']) == {'eval/x': 0.5}
    assert seen == [('policy', 'frozen', f'placed {b}') for b in 'ab']
    assert measured == [((4, 1), 'carried')]


def test_nothing_to_evaluate_on_is_refused():
    with pytest.raises(ValueError, match=r'without examples.*data\.eval'):
        evaluate(types.SimpleNamespace(), types.SimpleNamespace(), NOTHING, [])
