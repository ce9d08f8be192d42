"""Responses as text: what ends them, and what they follow from."""

import dataclasses

import numpy as np
import pytest

from epa_jax import sharding
from epa_jax.config import ConfigError
from epa_jax.data.prompts import Prompt
from epa_jax.evals.generation import draws_of
from epa_jax.evals.responding import Responder, Response
from epa_jax.evals.sampling import Sampling
from epa_jax.evals.stopping import stop_ids
from epa_jax.policy import load_policy
from epa_jax.schema import MeshConfig
from tests import small_run


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('responding')
    small_run.write(folder)
    return folder / 'model'


@pytest.fixture(scope='module')
def responder(folder):
    policy = load_policy(folder, mesh=sharding.make_mesh(MeshConfig()))
    return Responder(
        policy, Sampling(6, stop_ids(policy.tokenizer, folder, ()), temperature=0.0)
    )


def ids(*words):
    return [np.array(small_run.tokenizer()(text)['input_ids'], np.int32) for text in words]


def test_draws_follow_from_the_prompt_and_how_often_it_came():
    one, two = ids('w1', 'w2')
    first = draws_of([one, two, one])
    assert len(set(first)) == 3
    assert draws_of([two, one, one]) == [first[1], first[0], first[2]]


def test_a_response_ends_before_a_stop_text_and_counts_its_tokens(responder):
    (whole,) = responder(ids('w1'))
    assert whole == Response(whole.text, 6, False)
    words = whole.text.split()
    cut = dataclasses.replace(responder, stops=(words[2],))
    (found,) = cut(ids('w1'))
    first = words.index(words[2])
    assert found.text.split() == words[:first]
    assert found.tokens >= first + 1
    assert found.finished


def test_a_token_of_the_model_ends_a_response(responder):
    (whole,) = responder(ids('w1'))
    (tokens,) = ids(whole.text)
    ends = dataclasses.replace(responder.sampling, stop_ids=(int(tokens[1]),))
    (found,) = dataclasses.replace(responder, sampling=ends)(ids('w1'))
    assert found.finished
    assert found.tokens == tokens.tolist().index(tokens[1]) + 1


def test_a_prompt_without_room_is_named(responder):
    prompts = [Prompt('w1', 'a.jsonl:7', {})]
    most = responder.policy.spec.max_positions
    responder.check_lengths(prompts, [np.zeros(most - 6, np.int32)])
    with pytest.raises(ConfigError, match=f'a.jsonl:7: {most - 5} tokens, and with'):
        responder.check_lengths(prompts, [np.zeros(most - 5, np.int32)])
