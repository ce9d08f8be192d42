"""MT-Bench: questions, turns after one's own answers, FastChat's layout."""

import json
import typing

import pytest

from epa_jax import sharding
from epa_jax.config import ConfigError
from epa_jax.data.prompts import Prompt, encode_prompts
from epa_jax.data.sources import DataError
from epa_jax.evals.mt_bench import (
    TEMPERATURES,
    Conversation,
    Question,
    answers,
    converse,
    read_questions,
)
from epa_jax.evals.responding import Responder, Response
from epa_jax.evals.sampling import Sampling
from epa_jax.policy import load_policy
from epa_jax.schema import DataConfig, MeshConfig
from epa_jax.types import Message
from tests import small_run

TEMPLATE = '{% for m in messages %}{{ m.content }} {% endfor %}'


@pytest.fixture(scope='module')
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp('mt_bench')
    small_run.write(folder)
    return load_policy(folder / 'model', mesh=sharding.make_mesh(MeshConfig()))


@pytest.fixture(scope='module')
def cfg(tmp_path_factory):
    path = tmp_path_factory.mktemp('template') / 'words.jinja'
    path.write_text(TEMPLATE)
    return DataConfig(chat_template=str(path))


def responder(policy, temperature=1.0, new=5):
    return Responder(policy, Sampling(new, (2,), temperature), seed=3)


def question(id_, category, *turns):
    return Question(id_, category, turns, f'x:{id_}')


QUESTIONS = [
    question(81, 'writing', 'w1 w2', 'w3'),
    question(82, 'math', 'w4', 'w5 w6'),
    question(83, 'stem', 'w7 w8 w9'),
    question(84, 'unheard of', 'w10', 'w11', 'w12'),
]


def alone(policy, cfg, temperature, *turns, new=5):
    """The response to one conversation, asked for by itself."""
    roles = ('user', 'assistant') * len(turns)
    messages = tuple(Message(*turn) for turn in zip(roles, turns, strict=False))
    ids = encode_prompts([Prompt(messages, '', {})], policy.tokenizer, cfg)
    (found,) = responder(policy, temperature, new)(ids)
    return found._replace(text=found.text.strip())


def test_each_turn_follows_one_s_own_answers_at_the_category_s_temperature(policy, cfg):
    talks = converse(QUESTIONS, responder(policy), cfg)
    assert [talk.question for talk in talks] == QUESTIONS
    for talk, temperature in zip(talks, (0.7, 0.0, 0.1, 0.7), strict=True):
        said = []
        for turn, response in zip(talk.question.turns, talk.responses, strict=True):
            said.append(turn)
            assert response == alone(policy, cfg, temperature, *said)
            said.append(response.text)
    assert sum(talk.short + talk.empty for talk in talks) == 0


def test_choices_differ_where_the_temperature_is_not_zero(policy, cfg):
    talks = converse(QUESTIONS[:2], responder(policy), cfg, choices=3)
    texts = [[response.text for response in talk.responses] for talk in talks]
    assert [talk.question.id for talk in talks] == [81] * 3 + [82] * 3
    assert len({text for text, _ in texts[:3]}) > 1
    assert texts[3] == texts[4] == texts[5]


def test_a_later_turn_gets_the_room_that_is_left(policy, cfg):
    most = policy.spec.max_positions
    questions = [
        question(1, 'math', 'w1', 'w2'),
        question(2, 'math', 'w3', ' '.join(['w4'] * most)),
        question(3, 'math', 'w5'),
    ]
    first, second, third = converse(questions, responder(policy, new=most - 20), cfg)
    before, after = first.responses
    assert before.tokens == most - 20
    assert len(before.text.split()) > 20
    said = ('w1', before.text, 'w2')
    messages = tuple(map(Message, ('user', 'assistant', 'user'), said))
    (ids,) = encode_prompts([Prompt(messages, '', {})], policy.tokenizer, cfg)
    assert after.tokens == most - len(ids) > 0
    assert after == alone(policy, cfg, 0.0, *said, new=most - len(ids))
    assert (first.short, first.empty) == (1, 0)
    assert (second.short, second.empty) == (1, 1)
    assert second.responses[1] == Response('', 0, False)
    assert (third.short, third.empty) == (0, 0)


class Spaced(Responder):
    """Responds the same, and remembers what it read."""

    read: typing.ClassVar[list] = []

    def __call__(self, ids):
        self.read.extend(self.policy.tokenizer.decode(tokens) for tokens in ids)
        return [Response(' \n w3 \n', 2, True) for _ in ids]


def test_white_space_around_a_response_is_no_part_of_it(policy, cfg):
    talker = Spaced(policy, Sampling(5, (2,)))
    (talk,) = converse([question(1, 'math', 'w1', 'w2')], talker, cfg)
    assert [response.text for response in talk.responses] == ['w3', 'w3']
    assert talker.read == ['w1', 'w1 w3 w2']


def test_a_first_turn_without_room_is_refused(policy, cfg):
    long = question(5, 'math', ' '.join(['w4'] * policy.spec.max_positions))
    with pytest.raises(ConfigError, match='x:5: '):
        converse([QUESTIONS[0], long], responder(policy), cfg)


def test_answers_are_as_fastchat_writes_them():
    response = [Response(text, 1, True) for text in ('a', 'b', 'c', 'd')]
    talks = [
        Conversation(QUESTIONS[0], (response[0], response[1])),
        Conversation(QUESTIONS[0], (response[2], response[3])),
        Conversation(QUESTIONS[2], (response[0],)),
    ]
    one, two = answers(talks, 'epa', 12.5)
    # the keys of FastChat 0.2.36, gen_model_answer.get_model_answers, in their order
    assert list(one) == ['question_id', 'answer_id', 'model_id', 'choices', 'tstamp']
    assert one['question_id'] == 81
    assert one['model_id'] == 'epa'
    assert one['tstamp'] == 12.5
    assert one['choices'] == [
        {'index': 0, 'turns': ['a', 'b']},
        {'index': 1, 'turns': ['c', 'd']},
    ]
    assert two['choices'] == [{'index': 0, 'turns': ['a']}]
    # shortuuid.uuid() there: 22 letters and digits, another for each answer
    for row in (one, two):
        assert isinstance(row['answer_id'], str)
        assert len(row['answer_id']) == 22
        assert row['answer_id'].isalnum()
    assert one['answer_id'] != two['answer_id']
    assert next(answers(talks[:2], 'dpo', 12.5))['answer_id'] != one['answer_id']


def test_temperatures_are_fastchat_s():
    # fastchat.llm_judge.common.temperature_config of FastChat 0.2.36
    greedy = dict.fromkeys(
        ('extraction', 'math', 'coding', 'reasoning', 'arena-hard-200'), 0.0
    )
    warm = {'writing': 0.7, 'roleplay': 0.7, 'stem': 0.1, 'humanities': 0.1}
    assert greedy | warm == TEMPERATURES


def test_the_published_questions_are_read(shared_data):
    path = str(shared_data / 'prompts/mt_bench_question.jsonl')
    questions = read_questions(path)
    assert [q.id for q in questions] == list(range(81, 161))
    assert {len(q.turns) for q in questions} == {2}
    assert {q.category for q in questions} == set(TEMPERATURES) - {'arena-hard-200'}
    assert [q.id for q in read_questions(path, 3)] == [81, 82, 83]


GOOD = {'question_id': 1, 'category': 'math', 'turns': ['a', 'b'], 'reference': ['c']}


@pytest.mark.parametrize(
    ('row', 'message'),
    [
        (GOOD | {'question_id': None}, 'question_id: expected a number or text'),
        (GOOD | {'question_id': 1}, r'question_id 1 is that of .*q\.jsonl:1'),
        ({'question_id': 2, 'turns': ['a']}, 'category: expected text'),
        (GOOD | {'question_id': 2, 'turns': []}, 'turns: expected a list of texts'),
        (GOOD | {'question_id': 2, 'turns': 'a'}, 'turns: expected a list of texts'),
        (GOOD | {'question_id': 2, 'turns': ['a', '']}, 'turns: expected texts that'),
        ('text', 'expected an object, found str'),
    ],
)
def test_bad_questions_are_named(tmp_path, row, message):
    path = tmp_path / 'q.jsonl'
    path.write_text(f'{json.dumps(GOOD)}\n{json.dumps(row)}\n')
    with pytest.raises(DataError, match=rf'q\.jsonl:2: {message}'):
        read_questions(str(path))


def test_a_file_without_questions_is_refused(tmp_path):
    path = tmp_path / 'q.jsonl'
    path.write_text('\n')
    with pytest.raises(DataError, match='no questions'):
        read_questions(str(path))
    path.write_text('{\n')
    with pytest.raises(DataError, match=r'q\.jsonl:1: not JSON'):
        read_questions(str(path))
