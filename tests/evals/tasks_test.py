"""Questions as they are read from files."""

import json

import pytest

from epa_jax.data.sources import DataError
from epa_jax.evals.tasks import read_task


def write(path, *records):
    path.write_text(''.join(json.dumps(r) + '\n' for r in records), 'utf-8')
    return str(path)


def pairs(task):
    return [[(o.context, o.continuation) for o in q.options] for q in task.questions]


def test_three_kinds_of_records(tmp_path):
    choices = {'query': 'He fell, so', 'choices': ['he cried.', 'he flew.'], 'gold': 1}
    task = read_task(write(tmp_path / 'copa.jsonl', choices))
    assert (task.name, task.is_choice, task.in_file) == ('copa', True, 1)
    assert pairs(task) == [[('He fell, so', ' he cried.'), ('He fell, so', ' he flew.')]]
    assert task.questions[0].gold == 1
    assert [o.length for o in task.questions[0].options] == [9, 8]
    assert task.questions[0].origin.endswith('copa.jsonl:1')
    contexts = {'context_options': ['As Al', 'As Bo'], 'continuation': 'won.', 'gold': 0}
    task = read_task(write(tmp_path / 'w.jsonl', contexts))
    assert pairs(task) == [[('As Al', ' won.'), ('As Bo', ' won.')]]
    text = {'context': 'I care about ', 'continuation': 'signs'}
    task = read_task(write(tmp_path / 'lambada.jsonl', text))
    assert pairs(task) == [[('I care about', ' signs')]]
    assert not task.is_choice


@pytest.mark.parametrize(
    ('query', 'delimiter', 'expected'),
    [
        ('Question: why?\n', None, ('Question: why?\nAnswer:', ' so')),
        ('Question: why?\nA. so\nAnswer:', None, ('Question: why?\nA. so\nAnswer:', ' so')),
        ('why?', '\n', ('why?', '\nso')),
        ('why?', ' => ', ('why? =>', ' so')),
        ('why?', '', ('why?', 'so')),
    ],
)
def test_delimiters(tmp_path, query, delimiter, expected):
    record = {'query': query, 'choices': ['so', 'no'], 'gold': 0}
    task = read_task(write(tmp_path / 'x.jsonl', record), delimiter=delimiter)
    assert pairs(task)[0][0] == expected


def test_a_limit_takes_the_same_questions_again_and_keeps_their_order(tmp_path):
    source = write(
        tmp_path / 'x.jsonl',
        *({'context': f'c{i}', 'continuation': 'x'} for i in range(30)),
    )

    def chosen(seed):
        task = read_task(source, limit=10, seed=seed)
        assert task.in_file == 30
        return [int(q.options[0].context[1:]) for q in task.questions]

    assert chosen(0) == sorted(set(chosen(0)))
    assert len(chosen(0)) == 10
    assert chosen(0) == chosen(0) != chosen(1)
    assert len(read_task(source, limit=99).questions) == 30


GOOD = {'query': 'q', 'choices': ['a', 'b'], 'gold': 0}


@pytest.mark.parametrize(
    ('record', 'message'),
    [
        ({**GOOD, 'gold': 2}, r'x.jsonl:2: gold=2: .*index.* 2 options'),
        ({**GOOD, 'gold': True}, 'gold=True'),
        ({**GOOD, 'gold': '0'}, "gold='0'"),
        ({**GOOD, 'choices': ['a']}, 'choices: expected a list of two'),
        ({**GOOD, 'choices': 'ab'}, 'choices: expected a list of two'),
        ({**GOOD, 'choices': ['a', ' ']}, r'choices\[1\] is empty'),
        ({**GOOD, 'query': None}, 'query: expected text, found NoneType'),
        ({'question': 'q'}, r"keys are \['question'\]; expected query, choices"),
        (['q'], 'expected an object, found list'),
        ({'context': 'c', 'continuation': 'd'}, 'in one source; split it'),
    ],
)
def test_a_bad_record_is_named(tmp_path, record, message):
    source = write(tmp_path / 'x.jsonl', GOOD, record)
    with pytest.raises(DataError, match=message):
        read_task(source)


def test_bad_files(tmp_path):
    (tmp_path / 'bad.jsonl').write_text('{\n')
    with pytest.raises(DataError, match=r'bad.jsonl:1: not JSON'):
        read_task(str(tmp_path / 'bad.jsonl'))
    (tmp_path / 'none.jsonl').write_text('\n')
    with pytest.raises(DataError, match='no questions'):
        read_task(str(tmp_path / 'none.jsonl'))
