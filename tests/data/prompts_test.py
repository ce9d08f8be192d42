"""Prompts of many kinds of records."""

import json

import numpy as np
import pytest

from epa_jax.config import ConfigError
from epa_jax.data.prompts import Prompt, encode_prompts, read_prompts
from epa_jax.data.sources import DataError
from epa_jax.schema import DataConfig
from epa_jax.types import Message
from tests import small_run

USER = {'role': 'user', 'content': 'why'}
ASSISTANT = {'role': 'assistant', 'content': 'so'}
KINDS = {
    'prompt': ({'prompt': 'why', 'dataset': 'x'}, 'why'),
    'messages': ({'prompt': [USER]}, (Message('user', 'why'),)),
    'alpaca_eval': ({'instruction': 'why', 'dataset': 'x'}, 'why'),
    'mt_bench': ({'question_id': 81, 'turns': ['why', 'and then']}, 'why'),
    'pairs': ({'prompt': 'why', 'chosen': 'a', 'rejected': 'b'}, 'why'),
    'rated': ({'prompt': 'why', 'responses': [{'text': 'a', 'rating': 1}] * 2}, 'why'),
    'sft': ({'messages': [USER, ASSISTANT]}, (Message('user', 'why'),)),
    'hh': (
        {
            'chosen': '\n\nHuman: why\n\nAssistant: a',
            'rejected': '\n\nHuman: why\n\nAssistant: b',
        },
        (Message('user', 'why'),),
    ),
}


@pytest.mark.parametrize('kind', KINDS)
def test_kinds_of_records(tmp_path, kind):
    record, expected = KINDS[kind]
    path = tmp_path / 'x.jsonl'
    path.write_text(json.dumps(record) + '\n')
    (found,) = read_prompts(str(path))
    assert found == Prompt(expected, f'{path}:1', record)


def test_text_files_hold_a_prompt_a_line(tmp_path):
    path = tmp_path / 'x.txt'
    path.write_text('one\n\ntwo\n')
    found = read_prompts(str(path))
    assert [(p.prompt, p.origin) for p in found] == [
        ('one', f'{path}:1'),
        ('two', f'{path}:3'),
    ]
    assert len(read_prompts(str(path), limit=1)) == 1


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('{"question": "why"}', r"x.jsonl:1: no prompt; keys are \['question'\]"),
        ('{"prompt": 3}', 'expected text or messages, found int'),
        ('{"prompt": ""}', 'prompt is empty'),
        ('["why"]', 'expected an object, found list'),
        ('{', 'x.jsonl:1: not JSON'),
        ('', 'x.jsonl: no prompts'),
    ],
)
def test_bad_records_are_named(tmp_path, line, message):
    path = tmp_path / 'x.jsonl'
    path.write_text(line + '\n')
    with pytest.raises(DataError, match=message):
        read_prompts(str(path))


def test_a_missing_text_file(tmp_path):
    with pytest.raises(DataError, match=r'none.txt: cannot be read'):
        read_prompts(str(tmp_path / 'none.txt'))


def test_tokens_are_those_of_training():
    tokenizer = small_run.tokenizer()
    prompts = [
        Prompt('w1 w2', 'a', {}),
        Prompt((Message('user', 'w3'),), 'b', {}),
    ]
    plain, turns = encode_prompts(prompts, tokenizer, DataConfig())
    assert plain.dtype == np.int32
    assert plain.tolist() == tokenizer('w1 w2')['input_ids']
    assert turns.tolist() == tokenizer('\n\nHuman: w3\n\nAssistant:')['input_ids']
    tokenizer.chat_template = (
        '{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}w9'
    )
    (found, _) = encode_prompts(prompts, tokenizer, DataConfig(system_prompt='w7'))
    assert found.tolist() == tokenizer('system w7 user w1 w2 w9')['input_ids']
    with pytest.raises(ConfigError, match='expected'):
        encode_prompts(prompts, tokenizer, DataConfig(chat_template='nowhere.jinja'))
