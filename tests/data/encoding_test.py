"""Tokens of prompts and responses on every kind of tokenizer: exact at the border."""

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from epa_jax.config import ConfigError
from epa_jax.data.encoding import Encoder
from epa_jax.data.sources import DataError
from tests.data import tokenizers_in_memory as in_memory
from tests.data.tokenizers_in_memory import made, text_of

TEXTS = in_memory.TEXTS
NAMES = sorted(in_memory.MAKERS)


def prompt_ids(tokenizer, text, special=True):
    (ids,) = Encoder(tokenizer).prompts([text], special=special)
    return ids


def response_ids(tokenizer, text):
    (ids,) = Encoder(tokenizer).responses([text], ['data.jsonl:7'])
    return ids


@pytest.fixture(params=NAMES)
def tokenizer(request):
    return made(request.param)


@pytest.mark.parametrize('text', TEXTS)
def test_a_response_never_begins_with_a_space_of_the_tokenizers(tokenizer, text):
    """Behind the word 'it', the response's tokens must say the response, no more."""
    ids = response_ids(tokenizer, text)
    word = tokenizer('it', add_special_tokens=False).input_ids
    space = text_of(tokenizer, word).removesuffix('it')
    assert text_of(tokenizer, word + ids[:-1]) == f'{space}it{text}'


@given(
    st.sampled_from(NAMES),
    st.text('ab .\n1日é', max_size=8),
    st.text('ab .\n1日é', max_size=8),
)
def test_any_text_is_spelt_exactly(name, prompt, response):
    tokenizer = made(name)
    prompt = f'it{prompt}'
    ids = prompt_ids(tokenizer, prompt) + response_ids(tokenizer, response)
    said = text_of(tokenizer, ids).removeprefix(tokenizer.bos_token or '').lstrip(' ')
    assert said == prompt + response + tokenizer.eos_token


def test_many_texts_at_once_are_each_as_alone(tokenizer):
    """No text pads, cuts or joins its neighbours."""
    encoder = Encoder(tokenizer)
    texts = [*TEXTS, 'a test and a test ' * 40, '12', *TEXTS[::-1]]
    for special in (True, False):
        alone = [prompt_ids(tokenizer, text, special) for text in texts]
        assert encoder.prompts(texts, special=special) == alone
    alone = [response_ids(tokenizer, text) for text in texts]
    assert encoder.responses(texts, ['x'] * len(texts)) == alone
    assert encoder.prompts([], special=True) == encoder.responses([], []) == []


@pytest.mark.parametrize('name', ['chatml', 'metaspace'])
def test_the_tokenizers_own_limits_cut_and_pad_nothing(name):
    """Some models come with a truncation or padding stored in tokenizer.json."""
    tokenizer = in_memory.MAKERS[name]()
    tokenizer.backend_tokenizer.enable_truncation(max_length=3)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    tokenizer.model_max_length = 3
    long = 'a test and a test ' * 20
    for text in (long, 'a'):
        assert prompt_ids(tokenizer, text) == prompt_ids(made(name), text)
        assert response_ids(tokenizer, text) == response_ids(made(name), text)
    assert long.endswith(text_of(tokenizer, prompt_ids(tokenizer, long))[-9:])


@pytest.mark.parametrize('name', in_memory.WITH_BOS)
def test_one_bos_at_the_start_of_a_prompt_and_none_before_responses(name):
    tokenizer = made(name)
    bos = tokenizer.bos_token_id
    for text in ('Hi', '<s>Hi'):
        ids = prompt_ids(tokenizer, text)
        assert ids[0] == bos
        assert ids.count(bos) == 1
    assert bos not in prompt_ids(tokenizer, 'Hi', special=False)
    for text in ('Yes', ' No', ''):
        assert bos not in response_ids(tokenizer, text)


def test_a_tokenizer_without_bos():
    tokenizer = made('chatml')
    assert tokenizer.bos_token_id is None
    assert text_of(tokenizer, prompt_ids(tokenizer, 'Hi')) == 'Hi'
    assert text_of(tokenizer, response_ids(tokenizer, 'Yes')) == 'Yes<|im_end|>'


def test_exactly_one_end_of_sequence(tokenizer):
    for text in TEXTS:
        ids = response_ids(tokenizer, text)
        assert ids[-1] == tokenizer.eos_token_id
        assert ids.count(tokenizer.eos_token_id) == 1


def test_no_prompt_ends_with_an_end_of_sequence():
    tokenizer = made('closes text')
    assert tokenizer('Hi').input_ids[-1] == tokenizer.eos_token_id
    assert prompt_ids(tokenizer, 'Hi') == tokenizer('Hi').input_ids[:-1]


def test_tokens_do_not_merge_across_the_border():
    """'hel' + 'lo' is one token when joined, but the prompt's tokens must not change."""
    tokenizer = made('chatml')
    joint = tokenizer('hello').input_ids
    prompt, answer = prompt_ids(tokenizer, 'hel'), response_ids(tokenizer, 'lo')
    assert prompt + answer[:-1] != joint
    assert prompt == tokenizer('hel').input_ids
    assert text_of(tokenizer, answer) == 'lo<|im_end|>'


def test_a_real_sentencepiece_tokenizer(shared_data):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(shared_data / 'stories260k')
    prompt = prompt_ids(tokenizer, 'Once upon a time')
    assert prompt == tokenizer('Once upon a time').input_ids
    # a border between words: the joint tokens are the same
    joint = tokenizer('Once upon a time, there was').input_ids
    assert prompt + response_ids(tokenizer, ', there was')[:-1] == joint
    for text in TEXTS:
        ids = prompt_ids(tokenizer, 'Once') + response_ids(tokenizer, text)
        assert text_of(tokenizer, ids).removeprefix('<s>').lstrip() == f'Once{text}</s>'


def test_a_tokenizer_that_cannot_end_a_response_is_refused():
    tokenizer = in_memory.chatml()
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match='no end-of-sequence token'):
        Encoder(tokenizer)


def test_a_tokenizer_that_joins_a_response_to_its_prompt_is_refused():
    """Whole texts as words: what is put before a response becomes part of its word."""
    vocab = {word: i for i, word in enumerate(['<unk>', '</s>', '\n', '.', 'a', '1'])}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token='<unk>'))
    whole = PreTrainedTokenizerFast(tokenizer_object=core, eos_token='</s>')
    with pytest.raises(DataError, match=r"model\.tokenizer: .* merges the start of 'a'"):
        Encoder(whole)
