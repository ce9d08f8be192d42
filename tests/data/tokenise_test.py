"""Examples as tokens, from the chat template to the limits; what is cut is counted."""

import dataclasses
import hashlib

import jax
import numpy as np
import pytest

from epa_jax.data import tokenise as tokenise_lib
from epa_jax.data.rendering import Renderer
from epa_jax.data.sources import DataError
from epa_jax.data.tokenise import TokeniseReport, prompt_key, tokenise
from epa_jax.schema import DataConfig
from epa_jax.types import Example, Message, Role
from tests.data import tokenizers_in_memory as in_memory
from tests.data.tokenizers_in_memory import made, text_of

LONG = DataConfig(max_prompt_tokens=10_000, max_response_tokens=10_000)


@pytest.fixture(params=in_memory.MAKERS)
def tokenizer(request):
    return made(request.param)


def example(prompt, *responses, ratings=None):
    roles = (Role.CHOSEN, *[Role.REJECTED] * (len(responses) - 1))
    return Example(prompt, responses, roles, ratings, 'data.jsonl:7')


def tokens(tokenizer, *args, cfg=LONG):
    """Prompt and responses as lists of ids."""
    (out,), report = tokenise([example(*args)], tokenizer, cfg)
    assert report.kept == 1
    return out.prompt_ids.tolist(), [ids.tolist() for ids in out.response_ids]


@pytest.mark.parametrize('response', in_memory.TEXTS)
def test_prompt_and_response_spell_the_text(tokenizer, response):
    item = example((Message('user', 'What is it?'),), response)
    before, (text,) = Renderer(tokenizer, LONG).render(item)
    prompt, (ids,) = tokens(tokenizer, item.prompt, response)
    assert ids[-1] == tokenizer.eos_token_id
    said = text_of(tokenizer, prompt + ids)
    assert said == text_of(tokenizer, prompt) + text + tokenizer.eos_token
    if tokenizer is not made('chatml, space before text'):
        # a space that a tokenizer puts before any text, it may put before the prompt
        assert bare(tokenizer, text_of(tokenizer, prompt)) == bare(tokenizer, before)


def bare(tokenizer, text):
    """Without the beginning of sequence and a space behind it."""
    return text.removeprefix(tokenizer.bos_token or '').removeprefix(' ')


def without_template():
    return dataclasses.replace(LONG, chat_template='none')


@pytest.mark.parametrize('name', in_memory.WITH_BOS)
@pytest.mark.parametrize('template', ['auto', 'none'])
def test_one_bos_at_the_start_of_a_prompt_and_none_before_responses(name, template):
    tokenizer = made(name)
    cfg = dataclasses.replace(LONG, chat_template=template)
    for prompt in ('Hi', (Message('user', 'Hi'),), '<s>Hi'):
        ids, answers = tokens(tokenizer, prompt, 'Yes', ' No', cfg=cfg)
        assert ids[0] == tokenizer.bos_token_id
        if prompt == '<s>Hi' and template == 'auto' and tokenizer.chat_template:
            continue  # the words of a message are the user's own
        assert ids.count(tokenizer.bos_token_id) == 1
        assert all(tokenizer.bos_token_id not in answer for answer in answers)


@pytest.mark.parametrize('text', ['Yes', 'Yes{eos}', 'Yes{eos}{eos}', '', '{eos}'])
def test_exactly_one_end_of_sequence(tokenizer, text):
    eos = tokenizer.eos_token_id
    response = text.format(eos=tokenizer.eos_token)
    for prompt in ('Hi', (Message('user', 'Hi'),)):
        _, (ids,) = tokens(tokenizer, prompt, response)
        assert ids.count(eos) == 1
        assert ids[-1] == eos


def test_nothing_follows_the_end_of_sequence():
    """The template writes a line break after it, which a model never generates."""
    tokenizer = made('chatml')
    _, (ids,) = tokens(tokenizer, (Message('user', 'Hi'),), 'Yes')
    assert text_of(tokenizer, ids) == 'Yes<|im_end|>'


@pytest.mark.parametrize(
    'name', ['chatml', 'instruction', 'llama 3', 'no bos in the template']
)
def test_prompts_are_what_transformers_gives_a_model_to_generate_from(name):
    tokenizer = made(name)
    talk = [('user', 'Hi'), ('assistant', 'Yes?'), ('user', 'Why is it?')]
    expected = tokenizer.apply_chat_template(
        [{'role': role, 'content': words} for role, words in talk],
        add_generation_prompt=True,
        return_dict=False,
    )
    prompt, _ = tokens(tokenizer, tuple(Message(*turn) for turn in talk), 'Because')
    assert prompt == expected


def test_a_plain_turn_has_the_tokens_it_will_have_as_an_earlier_turn(tokenizer):
    talk = (Message('user', 'What is it?'),)
    prompt, (ids,) = tokens(tokenizer, talk, 'It is a test', cfg=without_template())
    later = (*talk, Message('assistant', 'It is a test'), Message('user', 'So?'))
    longer, _ = tokens(tokenizer, later, 'yes', cfg=without_template())
    assert longer[: len(prompt) + len(ids) - 1] == prompt + ids[:-1]


def test_many_examples_are_each_as_alone(monkeypatch):
    """Whatever is dropped between them, and however they are divided into chunks."""
    long = 'a test and a test ' * 20
    items = [
        example('Hi', 'yes', 'no', 'perhaps'),
        example('Hi', 'yes', long),  # dropped
        example('', 'yes'),
        example((Message('user', 'Hi'),), 'yes', long, 'no'),
        example(long, 'yes', 'no'),
        example('one', 'alone'),
    ] * 2
    cfg = DataConfig(max_prompt_tokens=40, max_response_tokens=16, overlong_response='drop')
    alone = [tokenise([item], made('chatml'), cfg) for item in items]
    expected = [out for kept, _ in alone for out in kept]
    assert len(expected) == 10
    for chunk in (1, 2, 5, 100):
        monkeypatch.setattr(tokenise_lib, 'CHUNK', chunk)
        out, report = tokenise(items, made('chatml'), cfg)
        for one, other in zip(out, expected, strict=True):
            assert jax.tree.all(jax.tree.map(np.array_equal, fields(one), fields(other)))
        assert report.kept == 10
        assert report.dropped == {'no rejected response is short enough': 2}
        assert report.dropped_responses == {'too long': 2}
        assert report.truncated_prompts == 2


def fields(item):
    out = dataclasses.asdict(item)
    return {**out, 'ratings': np.nan_to_num(out['ratings'])}


def test_an_example_may_be_refused_once_it_is_tokens():
    def unusable(item):
        return 'too many responses' if len(item.response_ids) > 2 else None

    items = [example('Hi', 'a', 'b'), example('Hi', 'a', 'b<|im_end|>', 'c')]
    out, report = tokenise(items, made('chatml'), LONG, unusable=unusable)
    assert [len(item.response_ids) for item in out] == [2]
    expected = TokeniseReport(kept=1)
    expected.drop('too many responses', ['data.jsonl:7'])
    assert report == expected  # what is dropped counts as nothing else


@pytest.mark.parametrize('policy', ['truncate_right', 'truncate_left'])
def test_truncation_is_counted(policy):
    tokenizer = made('metaspace')
    cfg = dataclasses.replace(
        without_template(), max_prompt_tokens=6, max_response_tokens=5
    )
    prompt, response = '1 2 3 4 5 6 7 8', '1 2 3 4 5 6 7 8'
    whole, (answer,) = tokens(tokenizer, prompt, response, cfg=without_template())
    (out,), report = tokenise([example(prompt, response, 'a')], tokenizer, cfg)
    if policy == 'truncate_left':  # the end of the prompt stays, and its BOS
        assert out.prompt_ids.tolist() == [whole[0], *whole[-5:]]
        assert report.truncated_prompts == 1
    else:  # the start of the response stays; its end, with the EOS, is lost
        assert out.response_ids[0].tolist() == answer[:5]
        assert tokenizer.eos_token_id not in out.response_ids[0]
        assert out.response_ids[1][-1] == tokenizer.eos_token_id
        assert report.truncated_responses == 1


def test_what_fits_exactly_is_not_truncated():
    tokenizer = made('metaspace')
    prompt, (answer,) = tokens(tokenizer, 'Hello there', 'Hello', cfg=without_template())
    cfg = dataclasses.replace(
        without_template(), max_prompt_tokens=len(prompt), max_response_tokens=len(answer)
    )
    (out,), report = tokenise([example('Hello there', 'Hello')], tokenizer, cfg)
    assert out.prompt_ids.tolist() == prompt
    assert out.response_ids[0].tolist() == answer
    assert report == TokeniseReport(kept=1)


@pytest.mark.parametrize('limit', [1, 2, 3])
@pytest.mark.parametrize('response', ['', 'Hello there', '</s>'])
def test_every_response_keeps_a_token_to_score(limit, response):
    cfg = dataclasses.replace(
        without_template(), max_prompt_tokens=limit, max_response_tokens=limit
    )
    (out,), _ = tokenise([example('Hello there', response)], made('metaspace'), cfg)
    assert 1 <= len(out.response_ids[0]) <= limit
    assert 1 <= len(out.prompt_ids) <= limit


LONG_TEXT = 'a test and a test ' * 20


@pytest.mark.parametrize(
    ('responses', 'reason'),
    [
        ((LONG_TEXT, 'no'), 'the chosen response is too long'),
        (('yes', LONG_TEXT), 'no rejected response is short enough'),
    ],
)
def test_examples_dropped_for_their_responses(responses, reason):
    cfg = dataclasses.replace(LONG, max_response_tokens=16, overlong_response='drop')
    kept, report = tokenise([example('Hi', *responses)], made('chatml'), cfg)
    assert kept == []
    expected = TokeniseReport()
    expected.drop(reason, ['data.jsonl:7'])
    assert report == expected


def test_a_long_response_leaves_the_others():
    cfg = dataclasses.replace(LONG, max_response_tokens=16, overlong_response='drop')
    item = example('Hi', 'yes', LONG_TEXT, 'no', ratings=(3.0, 2.0, 1.0))
    (out,), report = tokenise([item], made('chatml'), cfg)
    assert out.roles.tolist() == [Role.CHOSEN, Role.REJECTED]
    assert out.ratings.tolist() == [3.0, 1.0]
    assert [text_of(made('chatml'), ids) for ids in out.response_ids] == [
        'yes<|im_end|>',
        'no<|im_end|>',
    ]
    assert report.dropped_responses == {'too long': 1}


def test_a_long_prompt_is_dropped():
    cfg = dataclasses.replace(LONG, max_prompt_tokens=16, overlong_prompt='drop')
    kept, report = tokenise([example(LONG_TEXT, 'a', 'b')], made('chatml'), cfg)
    assert (kept, dict(report.dropped)) == ([], {'the prompt is too long': 1})
    assert report.first_dropped == {'the prompt is too long': 'data.jsonl:7'}
    assert report.kept == 0


@pytest.mark.parametrize(
    ('prompt', 'response', 'message'),
    [
        (LONG_TEXT, 'a', r'data\.jsonl:7: the prompt has \d+ tokens, limit 16'),
        ('Hi', LONG_TEXT, r'data\.jsonl:7: a response has \d+ tokens, limit 16'),
    ],
)
def test_long_text_may_be_an_error(prompt, response, message):
    cfg = DataConfig(
        max_prompt_tokens=16,
        max_response_tokens=16,
        overlong_prompt='error',
        overlong_response='error',
    )
    with pytest.raises(DataError, match=message):
        tokenise([example(prompt, response)], made('chatml'), cfg)


def test_a_prompt_without_tokens_is_dropped():
    kept, report = tokenise([example('', 'a')], made('chatml'), without_template())
    assert (kept, dict(report.dropped)) == ([], {'the prompt has no tokens': 1})


def test_an_end_of_sequence_inside_a_response_is_counted():
    _, report = tokenise([example('Hi', 'a<|im_end|>b', 'c')], made('chatml'), LONG)
    assert report.eos_inside == 1


def test_padding_equal_to_the_end_of_sequence_changes_nothing():
    tokenizer = made('chatml')
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    _, (ids,) = tokens(tokenizer, 'Hi', 'Yes')
    assert ids[-1] == tokenizer.eos_token_id


def test_arrays_have_the_documented_types():
    (out,), _ = tokenise([example('Hi', 'a', 'b')], made('chatml'), LONG)
    assert out.prompt_ids.dtype == np.int32
    assert {ids.dtype for ids in out.response_ids} == {np.dtype(np.int32)}
    assert (out.roles.dtype, out.ratings.dtype) == (np.int8, np.float32)
    assert np.isnan(out.ratings).all()
    assert out.origin == 'data.jsonl:7'


def test_equal_prompts_have_equal_keys():
    assert prompt_key('Hi') == prompt_key(' Hi\n') == prompt_key((Message('user', 'Hi'),))
    # the same in every process: Python's own hashes are not
    assert prompt_key('Hi').hex() == hashlib.sha256(b'[["user", "Hi"]]').hexdigest()[:32]
    others = ['hi', 'Hi.', (Message('assistant', 'Hi'),), (*[Message('user', 'Hi')] * 2,)]
    assert len({prompt_key(other) for other in (*others, 'Hi')}) == 5
