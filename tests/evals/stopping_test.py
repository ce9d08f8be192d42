"""Where responses end."""

import json

import numpy as np
import pytest

from epa_jax.evals.stopping import before, stop_at, stop_ids
from tests import small_run

TOKENIZER = small_run.tokenizer()
EOS = TOKENIZER.eos_token_id


@pytest.mark.parametrize('place', ['.', 'export'])
def test_tokens_of_the_tokenizer_the_model_and_those_named(tmp_path, place):
    assert stop_ids(TOKENIZER, tmp_path, []) == (EOS,)
    assert stop_ids(TOKENIZER, tmp_path, ['<s>', 'w1']) == (EOS, 1)
    folder = tmp_path / place
    folder.mkdir(exist_ok=True)
    (folder / 'generation_config.json').write_text(json.dumps({'eos_token_id': [EOS, 7]}))
    assert stop_ids(TOKENIZER, tmp_path, ['<s>']) == (EOS, 7, 1)


def test_stop_is_the_token_that_completes_a_text():
    ids = np.array(TOKENIZER('w1 w2 w3')['input_ids'])
    assert stop_at(TOKENIZER, ['w9', '2'])(ids) == 2
    assert stop_at(TOKENIZER, ['w9'])(ids) is None
    assert stop_at(TOKENIZER, ['</s>']) is None  # a token, see stop_ids


def test_the_first_of_several_stops_cuts():
    assert before('one two three', ['three', 'two']) == 'one '
    assert before('one two three', ['four']) == 'one two three'
