"""What a judge is asked, what is kept, and what its verdicts add up to."""

import json
import logging
import threading
import time

import numpy as np
import pytest

from epa_jax.config import ConfigError
from epa_jax.data.sources import DataError
from epa_jax.evals.bootstrap import mean_interval
from epa_jax.evals.chat import ChatError, RequestError
from epa_jax.evals.judging import (
    REFUSED,
    TEMPLATE,
    Judge,
    Judgments,
    ask,
    key_of,
    read_template,
    verdict,
    win_rate,
)
from epa_jax.evals.matching import Pair


def pair(group=0, ours='ours', theirs='theirs', prompt='why?'):
    return Pair(prompt, ours, theirs, group, 'x:1')


@pytest.mark.parametrize(
    ('answer', 'expected'),
    [
        ('[[A]]', 'A'),
        ('B is clearer.\n\n[[B]]', 'B'),
        ('[[tie]] - both fail, so [[tie]]', 'tie'),
        ('[[A]] or [[B]]', None),
        ('A', None),
        ('[A]', None),
        ('[[a]]', None),
        ('[[C]]', None),
        ('', None),
    ],
)
def test_a_verdict_is_one_mark(answer, expected):
    assert verdict(answer) == expected


def test_both_orders_are_asked():
    one, other = Judge('m', seed=5, max_tokens=9).requests(pair())
    assert one.keys() == {'model', 'messages', 'temperature', 'seed', 'max_tokens'}
    assert (one['model'], one['temperature'], one['seed']) == ('m', 0, 5)
    (message,) = one['messages']
    assert message['role'] == 'user'
    text = message['content']
    assert text.index('why?') < text.index('\nours\n') < text.index('\ntheirs\n')
    text = other['messages'][0]['content']
    assert text.index('why?') < text.index('\ntheirs\n') < text.index('\nours\n')
    assert {**one, 'messages': 0} == {**other, 'messages': 0}
    assert 'max_tokens' not in Judge('m', max_tokens=0).requests(pair())[0]


def test_a_response_may_hold_the_name_of_a_place():
    judge = Judge('m', '{prompt}|{response_a}|{response_b}|{x}')
    one, _ = judge.requests(pair(ours='{response_b}', theirs=r'\g<0>{prompt}'))
    assert one['messages'][0]['content'] == r'why?|{response_b}|\g<0>{prompt}|{x}'


def test_a_key_follows_from_all_that_is_asked():
    asked = [
        *Judge('m').requests(pair()),
        *Judge('n').requests(pair()),
        *Judge('m', TEMPLATE + ' ').requests(pair()),
        *Judge('m', seed=1).requests(pair()),
        *Judge('m', max_tokens=1).requests(pair()),
        *Judge('m').requests(pair(ours='other')),
        *Judge('m').requests(pair(prompt='other')),
    ]
    assert len({key_of(request) for request in asked}) == len(asked)
    assert key_of(asked[0]) == key_of(Judge('m').requests(pair(group=3))[0])


def test_templates_are_read_and_checked(tmp_path):
    path = tmp_path / 'judge.txt'
    path.write_text('{prompt}{response_a}{response_b}')
    assert read_template(path) == '{prompt}{response_a}{response_b}'
    path.write_text('{prompt}{response_a}')
    with pytest.raises(ConfigError, match=r'judge.txt: expected \{response_b\}'):
        read_template(path)
    with pytest.raises(ConfigError, match=r'none\.txt: cannot be read'):
        read_template(tmp_path / 'none.txt')


REQUESTS = [{'model': 'm', 'number': n} for n in range(20)]


@pytest.mark.parametrize('workers', [1, 7])
def test_answers_are_kept_and_not_asked_for_again(tmp_path, workers):
    asked = []

    def complete(request):
        asked.append(request['number'])
        return f'{request["number"]} [[A]]'

    path = tmp_path / 'deep/judgments.jsonl'
    steps = ask(REQUESTS[:8] * 2, complete, Judgments(path), workers)
    assert list(steps) == list(range(1, 9))
    assert sorted(asked) == list(range(8))
    again = Judgments(path)
    assert again.answers == {key_of(r): f'{r["number"]} [[A]]' for r in REQUESTS[:8]}
    list(ask(REQUESTS, complete, again, workers))
    assert sorted(asked) == list(range(20))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 20
    assert {(row['verdict'], row['model']) for row in rows} == {('A', 'm')}


def test_what_is_under_way_when_one_fails_is_kept(tmp_path):
    both_run = threading.Barrier(2)
    failed = threading.Event()

    def complete(request):
        if request['number'] > 1:
            raise AssertionError('was not cancelled')
        both_run.wait(5)
        if request['number'] == 0:
            failed.set()
            raise ChatError('gone')
        failed.wait(5)
        return 'late [[B]]'

    judgments = Judgments(tmp_path / 'x.jsonl')
    with pytest.raises(ChatError, match='gone'):
        list(ask(REQUESTS[:2], complete, judgments, 2))
    assert list(judgments.answers) == [key_of(REQUESTS[1])]
    assert Judgments(tmp_path / 'x.jsonl').answers == judgments.answers


def test_what_is_under_way_when_the_user_stops_is_kept(tmp_path):
    both_run = threading.Barrier(2)

    def complete(request):
        both_run.wait(5)
        time.sleep(0.2 * request['number'])
        return '[[B]]'

    judgments = Judgments(tmp_path / 'x.jsonl')
    steps = ask(REQUESTS[:2], complete, judgments, 2)
    assert next(steps) == 1
    assert len(judgments.answers) == 1
    steps.close()
    assert set(judgments.answers) == {key_of(request) for request in REQUESTS[:2]}


def test_nothing_more_is_asked_after_a_failure(tmp_path):
    asked = []

    def complete(request):
        asked.append(request)
        raise ChatError('gone')

    with pytest.raises(ChatError):
        list(ask(REQUESTS, complete, Judgments(tmp_path / 'x.jsonl'), 1))
    assert len(asked) < len(REQUESTS)


def test_a_refusal_is_kept_until_there_is_an_answer(tmp_path):
    path = tmp_path / 'x.jsonl'

    def refuse(request):
        if request['number']:
            raise RequestError('too long')
        return '[[A]]'

    judgments = Judgments(path)
    assert list(ask(REQUESTS[:3], refuse, judgments, 1)) == [1, 2, 3]
    assert Judgments(path).errors == {key_of(r): 'too long' for r in REQUESTS[1:3]}
    # what was answered before counts, also where all that is asked now is refused
    list(ask(REQUESTS[:3], refuse, judgments, 1))
    with pytest.raises(RequestError):
        list(ask(REQUESTS[1:3], refuse, judgments, 1))
    list(ask(REQUESTS[:3], lambda request: '[[B]]', judgments, 1))
    again = Judgments(path)
    assert again.errors == {}
    assert list(again.answers.values()) == ['[[A]]', '[[B]]', '[[B]]']


def test_half_a_last_line_is_taken_off(tmp_path, caplog):
    path = tmp_path / 'x.jsonl'
    judgments = Judgments(path)
    for request in REQUESTS[:2]:
        judgments.add(key_of(request), request, '[[A]]')
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with caplog.at_level(logging.WARNING):
        judgments = Judgments(path)
    assert 'took off half a line' in caplog.text
    assert list(judgments.answers) == [key_of(REQUESTS[0])]
    judgments.add(key_of(REQUESTS[1]), REQUESTS[1], '[[A]]')
    assert path.read_bytes() == whole


@pytest.mark.parametrize('text', ['{"prompt": "p"}\n', 'nonsense\n', '[]', '"x"\n'])
def test_another_file_is_refused_and_left_alone(tmp_path, text):
    path = tmp_path / 'mine.json'
    path.write_text(text)
    with pytest.raises(DataError, match=r'mine\.json(:1)?: expected'):
        Judgments(path)
    assert path.read_text() == text


def test_win_rate_of_verdicts_by_hand():
    pairs = [pair(group, 'x' * 10, 'y' * 4) for group in (0, 0, 1, 2, 3)]
    pairs += [pair(4, 'x' * 1000)] * 2
    found = win_rate(
        pairs,
        [
            ('A', 'B'),  # ours in both orders: 1
            ('A', 'A'),  # the first shown: a flip, 1/2
            ('B', 'A'),  # theirs: 0
            ('tie', 'B'),  # 3/4
            ('tie', 'tie'),  # 1/2
            (None, 'A'),  # does not count
            (REFUSED, None),  # nor does this
        ],
    )
    assert (found.prompts, found.pairs, found.counted) == (4, 7, 5)
    assert (found.unparsable, found.refused) == (2, 1)
    assert (found.wins, found.losses, found.ties) == (4, 3, 3)
    scores = np.array([0.75, 0.0, 0.75, 0.5])
    assert found.rate == mean_interval(scores)
    assert found.flips == 1 / 5
    assert found.first == 4 / 7
    assert (found.ours_characters, found.theirs_characters) == (10, 4)


def test_swapping_the_files_gives_the_rest_to_one():
    rng = np.random.default_rng(0)
    verdicts = [tuple(rng.choice(['A', 'B', 'tie'], 2).tolist()) for _ in range(50)]
    pairs = [pair(group) for group in range(50)]
    ours = win_rate(pairs, verdicts)
    # with the files swapped, the order that was asked first is asked second
    theirs = win_rate(pairs, [(other, one) for one, other in verdicts])
    assert ours.rate.value + theirs.rate.value == pytest.approx(1)
    assert (ours.flips, ours.first) == (theirs.flips, theirs.first)
    assert (ours.wins, ours.ties) == (theirs.losses, theirs.ties)


def test_without_a_verdict_nothing_is_known():
    found = win_rate([pair()], [(None, None)])
    assert found.unparsable == 2
    assert np.isnan([*found.rate, found.flips, found.first, found.ours_characters]).all()
