"""Every layout of the field's data sets, record by record."""

import pytest

from epa_jax.data.layouts import LAYOUTS, RecordError, detect, to_example
from epa_jax.types import Message, Role

PAIR = (Role.CHOSEN, Role.REJECTED)
QUESTION = {'role': 'user', 'content': 'What is 2 + 2?'}


def read(record, layout='auto'):
    return to_example(record, layout, 'data.jsonl:1')


def says(text):
    return {'role': 'assistant', 'content': text}


@pytest.mark.parametrize(
    ('record', 'prompt', 'responses'),
    [
        ({'prompt': 'Hi', 'chosen': ' a', 'rejected': ' b'}, 'Hi', (' a', ' b')),
        # TRL's implicit prompt: the common start; the space goes to the responses
        ({'chosen': 'It is blue', 'rejected': 'It is red'}, 'It is', (' blue', ' red')),
        (
            {'prompt': [QUESTION], 'chosen': [says('4')], 'rejected': [says('5')]},
            (Message('user', 'What is 2 + 2?'),),
            ('4', '5'),
        ),
        (
            {
                'chosen': [QUESTION, says('4')],
                'rejected': [QUESTION, says('5')],
            },
            (Message('user', 'What is 2 + 2?'),),
            ('4', '5'),
        ),
        # the same answer twice: still a prompt and two (identical) responses
        (
            {'chosen': [QUESTION, says('4')], 'rejected': [QUESTION, says('4')]},
            (Message('user', 'What is 2 + 2?'),),
            ('4', '4'),
        ),
        (
            {'prompt': 'What?', 'chosen': [says('4')], 'rejected': [says('5')]},
            (Message('user', 'What?'),),
            ('4', '5'),
        ),
    ],
    ids=['text', 'implicit', 'messages', 'implicit messages', 'identical', 'mixed'],
)
def test_pairs(record, prompt, responses):
    example = read(record)
    assert detect(record) == 'pairs'
    assert (example.prompt, example.responses) == (prompt, responses)
    assert (example.roles, example.ratings) == (PAIR, None)
    assert example.origin == 'data.jsonl:1'


def test_binarised_ultrafeedback():
    """HuggingFaceH4/ultrafeedback_binarized: whole conversations beside the prompt."""
    record = {
        'prompt': 'What is 2 + 2?',
        'prompt_id': 'abc',
        'chosen': [QUESTION, says('4')],
        'rejected': [QUESTION, says('5')],
        'messages': [QUESTION, says('4')],
        'score_chosen': 8.5,
        'score_rejected': 3,
    }
    example = read(record)
    assert example.prompt == (Message('user', 'What is 2 + 2?'),)
    assert example.responses == ('4', '5')
    assert example.ratings == (8.5, 3.0)


def test_several_rejected_responses():
    example = read({'prompt': 'Hi', 'chosen': 'a', 'rejected': ['b', 'c']})
    assert example.responses == ('a', 'b', 'c')
    assert example.roles == (Role.CHOSEN, Role.REJECTED, Role.REJECTED)
    assert example.ratings is None


def test_conversations_of_several_turns():
    before = [QUESTION, says('4'), {'role': 'user', 'content': 'Sure?'}]
    example = read({'chosen': [*before, says('Yes')], 'rejected': [*before, says('No')]})
    assert [m.content for m in example.prompt] == ['What is 2 + 2?', '4', 'Sure?']
    assert example.responses == ('Yes', 'No')


def test_hh_transcripts():
    before = '\n\nHuman: Hi: there\n\nAssistant: Yes?\nHuman: no turn\n\nHuman: Why'
    record = {
        'chosen': f'{before}\n\nAssistant: Because\n\nof that. ',
        'rejected': f'{before}\n\nAssistant:',
    }
    example = read(record)
    assert detect(record) == 'hh'
    assert example.prompt == (
        Message('user', 'Hi: there'),
        Message('assistant', 'Yes?\nHuman: no turn'),
        Message('user', 'Why'),
    )
    assert example.responses == ('Because\n\nof that.', '')
    assert example.roles == PAIR


def test_hh_transcripts_with_a_prompt_are_pairs():
    record = {'prompt': '\n\nHuman: Hi\n\nAssistant:', 'chosen': ' a', 'rejected': ' b'}
    assert detect(record) == 'pairs'
    assert read(record).responses == (' a', ' b')


RATED = {
    'ultrafeedback': {
        'instruction': 'Hi',
        'completions': [
            {'response': 'a', 'overall_score': 2.0, 'model': 'm'},
            {'response': 'b', 'overall_score': '8.5', 'fine-grained_score': 1},
            {'response': 'c', 'overall_score': 8.5},
        ],
    },
    'responses with ratings': {
        'prompt': 'Hi',
        'responses': [
            {'text': 'a', 'rating': 2},
            {'text': 'b', 'rating': 8.5},
            {'text': 'c', 'rating': 8.5},
        ],
    },
    'two lists': {
        'prompt': 'Hi',
        'responses': ['a', 'b', 'c'],
        'ratings': [2, 8.5, 8.5],
    },
    'ratings before rewards': {
        'prompt': 'Hi',
        'responses': ['a', 'b', 'c'],
        'rewards': [3, 2, 1],
        'ratings': [2, 8.5, 8.5],
    },
}


@pytest.mark.parametrize('record', RATED.values(), ids=RATED)
def test_rated(record):
    """The first of the best is chosen, the others are rejected, in their order."""
    example = read(record)
    assert detect(record) == 'rated'
    assert (example.prompt, example.responses) == ('Hi', ('a', 'b', 'c'))
    assert example.roles == (Role.REJECTED, Role.CHOSEN, Role.REJECTED)
    assert example.ratings == (2.0, 8.5, 8.5)


def test_rated_conversations():
    record = {'prompt': [QUESTION], 'responses': ['4', '5'], 'ratings': [1, 0]}
    assert read(record).prompt == (Message('user', 'What is 2 + 2?'),)


@pytest.mark.parametrize(
    ('record', 'prompt'),
    [
        ({'prompt': 'Hi', 'completion': ' a'}, 'Hi'),
        ({'messages': [QUESTION, says(' a')]}, (Message(*QUESTION.values()),)),
        (
            {'prompt': [QUESTION], 'completion': [says(' a')]},
            (Message(*QUESTION.values()),),
        ),
    ],
    ids=['text', 'messages', 'prompt and completion of messages'],
)
def test_single_responses(record, prompt):
    example = read(record)
    assert detect(record) == 'sft'
    assert (example.prompt, example.responses, example.roles) == (
        prompt,
        (' a',),
        (Role.CHOSEN,),
    )


HUMAN = '\n\nHuman: Hi'


@pytest.mark.parametrize(
    ('record', 'reason'),
    [
        (3, 'expected an object, found int'),
        (['a'], 'expected an object, found list'),
        ({}, r'keys \[\] fit no layout; expected chosen and rejected'),
        ({'text': 'a', 'id': 1}, r"keys \['id', 'text'\] fit no layout"),
        ({'prompt': 'a', 'chosen': 'a', 'rejected': None}, 'rejected is missing'),
        ({'prompt': '', 'chosen': 'a', 'rejected': 'b'}, 'prompt is empty'),
        ({'prompt': 3, 'chosen': 'a', 'rejected': 'b'}, 'expected text or messages'),
        ({'prompt': 'a', 'chosen': 'a', 'rejected': [says('b')]}, 'different types'),
        ({'prompt': 'a', 'chosen': 'a', 'rejected': ['b', 3]}, 'responses: expected text'),
        ({'chosen': 'a', 'rejected': ['b']}, 'prompt is missing'),
        ({'chosen': 'abc', 'rejected': 'xyz'}, 'share nothing at the start'),
        ({'chosen': 'ab', 'rejected': 'abc'}, 'is the start of the other'),
        ({'chosen': 'ab', 'rejected': 'ab'}, 'is the start of the other'),
        (
            {'question': 'Why', 'chosen': 'It is', 'rejected': 'It was'},
            'prompt is missing, but there is question: rename it',
        ),
        ({'chosen': [says('a')], 'rejected': [says('b')]}, 'share no prompt message'),
        (
            {'chosen': [QUESTION, says('a'), says('b')], 'rejected': [QUESTION, says('b')]},
            r"chosen: expected one assistant message .* found \['assistant', 'assistant'\]",
        ),
        (
            {'prompt': [QUESTION], 'chosen': [QUESTION], 'rejected': [says('b')]},
            r"chosen: expected one assistant message .* found \['user'\]",
        ),
        (
            {'chosen': [{'role': 'user'}], 'rejected': [says('b')]},
            'content is missing',
        ),
        ({'chosen': [], 'rejected': []}, 'expected text or messages, found list'),
        (
            {
                'prompt': 'a',
                'chosen': [{'role': 'user', 'content': 3}],
                'rejected': [says('b')],
            },
            'a message needs a role and a content of text',
        ),
        ({'chosen': HUMAN, 'rejected': HUMAN}, 'chosen: expected a transcript'),
        (
            {'chosen': f'{HUMAN}\n\nAssistant: a', 'rejected': 'Hi'},
            'rejected: expected a transcript',
        ),
        (
            {
                'chosen': f'{HUMAN}\n\nAssistant: a',
                'rejected': f'{HUMAN}, you\n\nAssistant: b',
            },
            'differ before their last Assistant turn',
        ),
        (
            {
                'chosen': f'{HUMAN}\n\nAssistant: a\n\nHuman: b',
                'rejected': f'{HUMAN}\n\nAssistant: a\n\nHuman: c',
            },
            r"expected one assistant message after the prompt, found \['user'\]",
        ),
        ({'prompt': 'a', 'responses': ['b'], 'ratings': [1]}, '1 responses, 1 ratings'),
        (
            {'prompt': 'a', 'responses': ['b', 'c'], 'ratings': [1]},
            '2 responses, 1 ratings',
        ),
        ({'prompt': 'a', 'responses': ['b', 'c']}, 'text is missing'),
        ({'prompt': 'a', 'responses': [1, 2], 'ratings': [1, 2]}, 'expected text'),
        ({'responses': ['b', 'c'], 'ratings': [1, 2]}, 'instruction is missing'),
        (
            {'prompt': 'a', 'responses': ['b', 'c'], 'ratings': [1, 'N/A']},
            "rating 'N/A': expected a number",
        ),
        (
            {'prompt': 'a', 'responses': ['b', 'c'], 'ratings': [1, float('nan')]},
            'rating nan: expected a finite number',
        ),
        ({'prompt': 'a', 'completion': 'b', 'label': False}, 'unpaired feedback'),
        ({'prompt': 'a', 'completion': 3}, 'expected text'),
        ({'messages': [says('a')]}, 'expected a prompt before the last message'),
        ({'messages': [says('a'), QUESTION]}, r"found \['user'\]"),
    ],
)
def test_bad_records_say_why(record, reason):
    with pytest.raises(RecordError, match=reason):
        read(record)


def test_a_named_layout_is_not_second_guessed():
    record = {'chosen': f'{HUMAN}\n\nAssistant: a', 'rejected': f'{HUMAN}\n\nAssistant: b'}
    assert read(record, 'pairs').prompt == f'{HUMAN}\n\nAssistant:'
    with pytest.raises(RecordError, match='instruction is missing'):
        read(record, 'rated')


def test_every_layout_is_detected():
    assert set(LAYOUTS) == {'pairs', 'hh', 'rated', 'sft'}
