"""What is measured of a policy, against enumeration and one sequence at a time."""

import itertools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from epa_jax.models import transformer
from epa_jax.world import files, language
from epa_jax.world.measure import (
    MAX_NEW_TOKENS,
    Estimate,
    Judge,
    World,
    best_of_n,
)

SPEC = files.model_spec(d_model=32, n_layers=1)
PROMPTS = files.split_prompts(12, seed=0)[1]
EOS = 2
BETA = 0.5


def random_params(seed):
    """Weights that prefer some words clearly and stop soon."""
    params = transformer.init_params(SPEC, jax.random.key(seed))
    params['layers'] = jax.tree.map(lambda p: 8 * p if p.ndim > 2 else p, params['layers'])
    return params | {'embed': 10 * params['embed']}


@pytest.fixture(scope='module')
def world():
    return World(PROMPTS, files.make_tokenizer(), SPEC, seed=0)


@pytest.fixture(scope='module')
def reference():
    return random_params(0)


@pytest.fixture(scope='module')
def policy():
    return random_params(1)


@pytest.fixture(scope='module')
def own(world, reference):
    return world.sample(reference, each=3, stream=4)


def test_the_estimate_is_numpy_s_over_the_means_of_prompts():
    values = np.random.default_rng(0).normal(2, 3, (50, 4))
    means = np.array([sum(row) / 4 for row in values])
    found = Estimate.of(values.astype(np.float32))
    assert found.mean == pytest.approx(values.mean(), rel=1e-5)
    assert found.error == pytest.approx(np.sqrt(np.var(means, ddof=1) / 50), rel=1e-5)


def test_repeating_a_sample_makes_no_estimate_more_certain():
    values = np.random.default_rng(0).normal(size=(30, 1))
    once, tenfold = Estimate.of(values), Estimate.of(np.repeat(values, 10, axis=1))
    assert tenfold.mean == pytest.approx(once.mean)
    assert tenfold.error == pytest.approx(once.error)


def test_the_standard_error_is_the_spread_of_the_mean():
    rng = np.random.default_rng(0)
    # samples of a prompt have its mean in common, as responses do
    worlds = [rng.normal(size=(40, 1)) + rng.normal(size=(40, 4)) for _ in range(2000)]
    estimates = [Estimate.of(values) for values in worlds]
    spread = np.std([e.mean for e in estimates])
    assert np.mean([e.error for e in estimates]) == pytest.approx(spread, rel=0.06)
    assert spread == pytest.approx(((1 + 1 / 4) / 40) ** 0.5, rel=0.06)


REWARDS = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 3), st.integers(1, 6)),
    elements=st.sampled_from([-2.0, -0.5, 0.25, 1.0, 3.0]),
)


@hypothesis.given(REWARDS)
def test_best_of_n_is_the_mean_over_all_choices(rewards):
    _, found = best_of_n(rewards)
    for n in range(1, rewards.shape[1] + 1):
        best = [[max(c) for c in itertools.combinations(row, n)] for row in rewards]
        assert found[n - 1] == pytest.approx(np.mean(best), abs=1e-12)


def test_kl_of_best_of_n_is_that_of_the_largest_of_n_uniforms():
    kl, _ = best_of_n(np.zeros((1, 8)))
    u = (np.arange(200_000) + 0.5) / 200_000
    for n in range(1, 9):
        density = n * u ** (n - 1)  # against 1
        assert kl[n - 1] == pytest.approx(np.mean(density * np.log(density)), abs=1e-6)


def test_sampled_responses_come_with_their_true_rewards(world, own):
    assert own.rewards.shape == (12, 3)
    for prompt, answers, rewards in zip(PROMPTS, own.token_ids, own.rewards, strict=True):
        for ids, reward in zip(answers, rewards, strict=True):
            words = [language.words()[i - 4] for i in ids if i >= 4]
            assert world.text(ids) == ' '.join(words)
            assert reward == language.true_reward(prompt, ' '.join(words))
            assert len(ids) == MAX_NEW_TOKENS or ids[-1] == EOS


def test_samples_are_fresh_by_stream_and_by_draw(world, reference, own):
    def flat(responses):
        return [tuple(ids) for answers in responses.token_ids for ids in answers]

    again = world.sample(reference, each=3, stream=4)
    other = world.sample(reference, each=3, stream=5)
    assert flat(again) == flat(own)
    assert sum(a == b for a, b in zip(flat(own), flat(other), strict=True)) < 6
    assert len(set(flat(own))) > 25


def test_log_probs_are_those_of_one_sequence_at_a_time(world, policy, own):
    found = world.logps(policy, own)
    assert found.shape == (12, 3)
    np.testing.assert_allclose(found, logps_by_hand(policy, own), rtol=1e-4)


@jax.jit
def sequence_logps(params, tokens):
    """Log-probs [T - 1, V] after every token but the last of one sequence."""
    place = jnp.arange(tokens.size)[None]
    ones = jnp.ones_like(place)
    hidden = transformer.hidden_states(
        params,
        tokens[None],
        place,
        ones,
        0 * ones,
        spec=SPEC,
        compute=transformer.Compute(),
    )
    return jax.nn.log_softmax(hidden[0, :-1] @ transformer.head_weights(params).T)


def logps_by_hand(params, responses):
    """Log pi(y|x), one response at a time, with words numbered by hand."""
    out = np.zeros(responses.rewards.shape)
    for n, (prompt, answers) in enumerate(zip(PROMPTS, responses.token_ids, strict=True)):
        start = [1, *(4 + language.words().index(word) for word in prompt.text.split())]
        for k, ids in enumerate(answers):
            tokens = np.zeros(40, np.int32)  # a causal model does not see what follows
            tokens[: len(start) + len(ids)] = [*start, *ids]
            logps = np.asarray(sequence_logps(params, tokens), np.float64)
            out[n, k] = sum(logps[len(start) - 1 + i, t] for i, t in enumerate(ids))
    return out


@hypothesis.given(st.integers(0, 5), st.integers(0, 1000))
def test_off_topic_responses_belong_to_other_topics(count, seed):
    prompts = files.split_prompts(12, seed)[1]
    world = World(prompts, files.make_tokenizer(), SPEC, seed)
    # every response is one word that tells whose it is
    token_ids = [[np.array([4 + 2 * i + k]) for k in range(2)] for i in range(12)]
    own = world.with_rewards(token_ids)
    found = world.with_off_topic(own, count)
    assert found.rewards.shape == (12, 2 + count)
    for i, answers in enumerate(found.token_ids):
        assert [a.item() for a in answers[:2]] == [4 + 2 * i, 5 + 2 * i]
        owners = [(a.item() - 4) // 2 for a in answers[2:]]
        assert all(prompts[j].topic != prompts[i].topic for j in owners)
        for ids, reward in zip(answers, found.rewards[i], strict=True):
            word = language.words()[ids.item() - 4]
            assert reward == language.true_reward(prompts[i], word)


def test_off_topic_responses_are_any_of_the_others(world):
    token_ids = [[np.array([4 + 3 * i + k]) for k in range(3)] for i in range(12)]
    found = world.with_off_topic(world.with_rewards(token_ids), 100)
    for i, answers in enumerate(found.token_ids):
        foreign = sum(p.topic != PROMPTS[i].topic for p in PROMPTS)
        assert len({a.item() for a in answers[3:]}) > 0.8 * min(3 * foreign, 100)


def test_the_reference_is_no_distance_from_itself(world, reference, own):
    found = Judge(world, reference, BETA, 2, own).outcome('SFT', reference, 0.5, 0.0)
    assert found.kl == Estimate(0.0, 0.0)
    np.testing.assert_array_equal(found.r_theta, np.zeros((12, 3)))
    assert np.isnan(found.linearity.mean_pearson)
    variance = own.rewards.var(axis=1).mean()
    assert found.linearity.mean_slope1_error == pytest.approx(variance)


def test_a_policy_is_judged_by_its_own_samples_and_by_the_given_ones(
    world, reference, policy, own
):
    found = Judge(world, reference, BETA, 2, own).outcome('new', policy, 0.7, 1.5)
    assert (found.name, found.accuracy, found.margin) == ('new', 0.7, 1.5)

    def log_ratio(responses):
        return logps_by_hand(policy, responses) - logps_by_hand(reference, responses)

    np.testing.assert_allclose(found.r_theta, BETA * log_ratio(own), rtol=1e-4, atol=1e-4)
    fresh = world.sample(policy, each=2, stream=1)
    assert found.kl.mean == pytest.approx(log_ratio(fresh).mean(), rel=1e-4)
    assert found.kl.mean > 1  # of other weights
    assert found.reward.mean == pytest.approx(fresh.rewards.mean())
    varied = own.rewards.std(axis=1) > 0.1
    assert varied.sum() > 6
    for n in np.flatnonzero(varied):
        expected = np.corrcoef(found.r_theta[n], own.rewards[n])[0, 1]
        assert found.linearity.pearson[n] == pytest.approx(expected, abs=1e-5)
