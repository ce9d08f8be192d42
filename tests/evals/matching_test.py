"""Response files, matched by prompt."""

import json

import pytest

from epa_jax.data.sources import DataError
from epa_jax.evals.matching import Pair, match


@pytest.fixture
def write(tmp_path):
    def write(name, rows):
        path = tmp_path / name
        if name.endswith('.json'):
            path.write_text(json.dumps(rows))
        else:
            path.write_text(''.join(f'{json.dumps(row)}\n' for row in rows))
        return str(path)

    return write


def test_both_layouts_are_matched_by_prompt_in_any_order(write):
    ours = write(
        'ours.jsonl',
        [
            {'prompt': 'p', 'responses': ['a']},
            {'prompt': [{'role': 'user', 'content': 'q'}], 'responses': ['b']},
            {'prompt': 'mine', 'responses': ['c']},
        ],
    )
    theirs = write(
        'theirs.json',
        [
            {'instruction': 'q', 'output': 'B', 'generator': 'x'},
            {'instruction': 'other', 'output': 'D', 'generator': 'x'},
            {'instruction': 'another', 'output': 'D', 'generator': 'x'},
            {'instruction': 'p', 'output': 'A', 'generator': 'x'},
        ],
    )
    found = match(ours, theirs)
    assert found.pairs == [
        Pair('p', 'a', 'A', 0, f'{ours}:1'),
        Pair('q', 'b', 'B', 1, f'{ours}:2'),
    ]
    assert (found.only_ours, found.only_theirs) == (1, 2)


def test_conversations_are_matched_as_text(write):
    turns = [
        {'role': 'user', 'content': 'hi'},
        {'role': 'assistant', 'content': 'yes?'},
        {'role': 'user', 'content': 'why'},
    ]
    path = write('a.jsonl', [{'prompt': turns, 'responses': ['because']}])
    (pair,) = match(path, path).pairs
    assert pair.prompt == 'User: hi\n\nAssistant: yes?\n\nUser: why'


def test_several_responses_are_paired_by_number_and_share_their_prompt(write):
    ours = write('a.jsonl', [{'prompt': 'p', 'responses': ['a', 'b']}])
    theirs = write(
        'b.jsonl',
        [{'prompt': 'p', 'responses': ['A']}, {'prompt': 'p', 'responses': ['B']}],
    )
    pairs = match(ours, theirs).pairs
    assert [(p.ours, p.theirs, p.group) for p in pairs] == [('a', 'A', 0), ('b', 'B', 0)]


GOOD = {'prompt': 'p', 'responses': ['a']}


@pytest.mark.parametrize(
    ('rows', 'message'),
    [
        ([{'prompt': 'q', 'responses': ['a']}], 'share no prompt'),
        ([{'prompt': 'p', 'responses': ['a', 'b']}], r'a.jsonl:1: 2 responses .* has 1 in'),
        ([GOOD, {'prompt': 'q'}], 'a.jsonl:2: no responses'),
        ([GOOD, {'prompt': 'q', 'responses': []}], 'a.jsonl:2: no responses'),
        (
            [GOOD, {'prompt': 'q', 'responses': [1]}],
            'a.jsonl:2: a response that is no text',
        ),
        ([GOOD, {'instruction': 'q'}], 'a.jsonl:2: a response that is no text'),
        ([GOOD, {'responses': ['a']}], 'a.jsonl:2: expected text or messages'),
        ([GOOD, [1]], 'a.jsonl:2: expected an object, found list'),
        ([], 'a.jsonl: no responses'),
    ],
)
def test_bad_files_are_named(write, rows, message):
    with pytest.raises(DataError, match=message):
        match(write('a.jsonl', rows), write('b.jsonl', [GOOD]))


def test_a_line_that_is_not_json_is_named(tmp_path, write):
    (tmp_path / 'bad.jsonl').write_text('{"prompt": \n')
    with pytest.raises(DataError, match=r'bad\.jsonl:1: not JSON'):
        match(str(tmp_path / 'bad.jsonl'), write('b.jsonl', [GOOD]))
