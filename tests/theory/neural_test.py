import functools

import numpy as np
import pytest

from epa_jax.losses.energy import ipm
from epa_jax.theory import neural
from epa_jax.theory.fit import descend
from epa_jax.theory.population import best_of_all
from epa_jax.theory.worlds import slope_and_pearson
from tests import tiny

SPEC = neural.small_spec(3)
PROMPTS = [[1, 2], [2, 1]]


@pytest.fixture(scope='module')
def tree():
    return neural.make_tree(SPEC, PROMPTS, 3)


def test_responses_end_once_or_at_the_limit():
    responses = neural.response_tree(3, 3)
    assert len(responses) == 1 + 2 + 4 + 8
    assert len(set(responses)) == len(responses)
    for tokens in responses:
        assert neural.EOS not in tokens[:-1]
        assert tokens[-1] == neural.EOS or len(tokens) == 3


def test_the_whole_tree_has_probability_1(tree):
    for seed in range(3):
        logps = neural.logps(tree, neural.random_params(SPEC, seed))
        np.testing.assert_allclose(np.exp(logps).sum(axis=1), 1, rtol=1e-5)


def test_log_probs_are_those_of_one_response_at_a_time(tree):
    params = neural.random_params(SPEC, 1)
    logps = neural.logps(tree, params)
    for n, prompt in enumerate(PROMPTS):
        for m in (0, 2, 6, 14):
            response = tree.responses[m]
            expected = tiny.sequence_logps(params, SPEC, prompt, response).sum()
            assert float(logps[n, m]) == pytest.approx(float(expected), rel=1e-4)


def test_the_ipm_leads_a_llama_to_the_slope_1_line(tree):
    """Theorem 3.1, from one start; experiments/papers/epa/theorem.py takes many."""
    world = neural.neural_world(tree, neural.random_params(SPEC, 0), 0.5, 1)
    rows = best_of_all(world)
    loss = functools.partial(ipm, beta=world.beta)

    def population_loss(params):
        return rows.loss(loss, tree.logps(params), world.log_ref.astype(np.float32))

    start = neural.random_params(SPEC, 5, scale=2.0)
    fit = descend(population_loss, start, steps=700, lr=3e-3)
    logps = np.asarray(neural.logps(tree, fit.params), np.float64)
    slope, pearson = slope_and_pearson(world.r_theta(logps), world.reward)
    np.testing.assert_allclose(slope, 1, atol=1e-3)
    assert np.min(pearson) > 0.9999
