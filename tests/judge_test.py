"""The command that compares responses by a judge, against a real server."""

import json
import re

import pytest

from epa_jax import judge
from tests.chat_server import serve, slowly

KEY = 'sk-secret-0123456789'
WORDS = {'good': 3, 'fair': 2, 'also': 2, 'poor': 1}
OURS = ['good', 'fair', 'fair', 'poor', 'good']
THEIRS = ['poor', 'also', 'good', 'fair', 'mute']


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY', judge.KEY):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{'prompt': f'question {i}', 'responses': [word]} for i, word in enumerate(OURS)]
    (tmp_path / 'ours.jsonl').write_text(''.join(f'{json.dumps(r)}\n' for r in rows))
    outputs = [
        {'instruction': f'question {i}', 'output': word, 'generator': 'x'}
        for i, word in enumerate([*THEIRS, 'unasked'])
    ]
    (tmp_path / 'theirs.json').write_text(json.dumps(outputs))
    return tmp_path


def shown(body):
    """The two responses, as the built-in template shows them."""
    text = body['messages'][0]['content']
    return re.search(
        r'<<< response A >>>\n(.*)\n<<< response B >>>\n(.*)\n<<< end', text
    ).groups()


def fair(body, _number=0):
    """Prefers the better word; cannot say what a mute says."""
    one, other = shown(body)
    if 'mute' in (one, other):
        return 'I cannot decide.'
    gap = WORDS[one] - WORDS[other]
    return f'Compared. [[{"A" if gap > 0 else "B" if gap < 0 else "tie"}]]'


def run(server, *words, out='judged.jsonl'):
    where = ['--base_url', server.url, '--model', 'gpt-x', '--out', out]
    judge.main(['ours.jsonl', 'theirs.json', *where, '--retries', '1', *words])


def test_win_rate_of_a_fair_judge(folder, capsys):
    with serve(fair) as server:
        run(server, '--summary', 'deep/summary.json', '--seed', '4')
    # a win, a tie and two losses; the fifth pair has no verdict
    found = json.loads((folder / 'deep/summary.json').read_text())
    assert found['rate']['value'] == pytest.approx((1 + 0.5 + 0 + 0) / 4)
    assert found['rate']['low'] < 0.375 < found['rate']['high']
    assert (found['wins'], found['ties'], found['losses']) == (2, 2, 4)
    assert (found['pairs'], found['counted'], found['unparsable']) == (5, 4, 2)
    assert (found['flips'], found['first'], found['only_theirs']) == (0, 0.5, 1)
    assert (found['template'], found['model'], found['seed']) == ('built in', 'gpt-x', 4)
    out = capsys.readouterr().out
    assert 'win rate  0.375 [' in out
    assert '0 only in ours and 1 only in theirs left out' in out
    assert '2 of 10 answers unparsable, 0 requests refused, 1 pairs left out' in out
    assert '10 judgments asked for' in out
    orders = sorted(shown(body) for body in server.bodies)
    both = list(zip(OURS, THEIRS, strict=True))
    assert orders == sorted(both + [pair[::-1] for pair in both])
    for body in server.bodies:
        assert (body['model'], body['temperature'], body['seed']) == ('gpt-x', 0, 4)


def test_a_judge_that_prefers_the_first_is_found_out(folder, capsys):
    with serve(lambda *_: '[[A]]') as server:
        run(server)
    out = capsys.readouterr().out
    assert 'win rate  0.500 [0.500, 0.500]' in out
    assert '1.000 of pairs change their winner with the order; 1.000 of winners' in out


def test_ties_count_one_half(folder, capsys):
    with serve(lambda *_: '[[tie]]') as server:
        run(server)
    out = capsys.readouterr().out
    assert 'win rate  0.500' in out
    assert '0 ours, 0 theirs, 10 ties' in out


def test_concurrency_changes_nothing(folder, capsys):
    said = []
    for workers in ('1', '6'):
        with serve(slowly(fair)) as server:
            name = f'{workers}.jsonl'
            run(server, '--concurrent', workers, '--summary', f'{workers}.json', out=name)
        assert server.together <= int(workers)
        said.append(capsys.readouterr().out.replace(name, ''))
    assert server.together > 1
    assert said[0] == said[1]
    assert (folder / '1.json').read_text() == (folder / '6.json').read_text()
    lines = [sorted((folder / f'{n}.jsonl').read_text().splitlines()) for n in '16']
    assert lines[0] == lines[1]


def test_an_interrupted_run_goes_on_and_a_finished_one_asks_nothing(folder, capsys):
    def until(body, number):
        return fair(body) if number < 4 else (500, b'overloaded', {})

    with serve(until) as server, pytest.raises(judge.ChatError, match='status 500') as stop:
        run(server, '--concurrent', '1')
    assert '4 judgments are in judged.jsonl; the same command goes on' in str(stop.value)
    capsys.readouterr()
    with serve(fair) as server:
        run(server)
        first = capsys.readouterr().out
        assert len(server.bodies) == 6
        run(server)
        assert len(server.bodies) == 6
        again = capsys.readouterr().out
        assert first.replace('6 judgments', '0 judgments') == again
        run(server, '--model', 'another')
        assert len(server.bodies) == 16


def test_throttling_is_waited_out(folder, capsys):
    def reply(body, number):
        return fair(body) if number % 2 else (429, b'slow down', {'Retry-After': 0})

    with serve(reply) as server:
        run(server, '--concurrent', '1')
    assert 'win rate  0.375' in capsys.readouterr().out
    assert len(server.bodies) == 20


def test_the_key_is_sent_and_never_written(folder, capfd, monkeypatch):
    monkeypatch.setenv('MY_KEY', KEY)

    def repeat(body, number):
        return fair(body) if number < 2 else (401, f'what is {KEY}?'.encode(), {})

    with serve(repeat) as server:
        words = [
            *['judge', 'ours.jsonl', 'theirs.json', '--base_url', server.url],
            *['--model', 'm', '--out', 'x.jsonl', '--concurrent', '1'],
        ]
        monkeypatch.setattr('sys.argv', [*words, '--api_key_env', 'MY_KEY'])
        with pytest.raises(SystemExit) as stop:
            judge.run_main()
        assert 'what is [key]? (a key was sent)' in str(stop.value)
        assert {h['Authorization'] for _, _, h in server.requests} == {f'Bearer {KEY}'}
        monkeypatch.setenv(judge.KEY, KEY + 'other')
        monkeypatch.setattr('sys.argv', words)
        with pytest.raises(SystemExit):
            judge.run_main()
        assert server.requests[-1][2]['Authorization'] == f'Bearer {KEY}other'
    shown = ''.join(capfd.readouterr()) + str(stop.value)
    written = ''.join(path.read_text() for path in folder.iterdir())
    assert 'question' in written
    assert KEY not in shown + written


def test_a_refused_request_is_an_error_of_its_pair_alone(folder, capsys):
    def strict(body, number):
        if 'question 4' in body['messages'][0]['content']:
            return 400, b'too long', {}
        return fair(body)

    for asked in (10, 2):  # what was refused is asked again
        with serve(strict) as server:
            run(server, '--summary', 's.json')
        assert len(server.bodies) == asked
        out = capsys.readouterr().out
        assert 'win rate  0.375 [' in out
        assert '0 of 8 answers unparsable, 2 requests refused, 1 pairs left out' in out
        assert 'status 400: too long; all are in judged.jsonl' in out
        found = json.loads((folder / 's.json').read_text())
        assert (found['refused'], found['counted'], found['unparsable']) == (2, 4, 0)
        assert len((folder / 'judged.jsonl').read_text().splitlines()) == 10
    with serve(fair) as server:
        run(server)
        assert len(server.bodies) == 2
    out = capsys.readouterr().out
    assert '2 of 10 answers unparsable, 0 requests refused' in out
    assert 'status 400' not in out


@pytest.mark.parametrize(('status', 'asked'), [(400, 10), (401, 1), (403, 1), (404, 1)])
def test_an_endpoint_that_refuses_all_is_an_error(folder, status, asked):
    with (
        serve(lambda *_: (status, b'no', {})) as server,
        pytest.raises(judge.ChatError, match=f'status {status}: no'),
    ):
        run(server, '--concurrent', '1')
    assert asked <= len(server.bodies) <= asked + 1  # one may be under way


def test_another_template_is_asked(folder):
    (folder / 'mine.txt').write_text('{response_a}/{response_b}/{prompt}? Say [[A]]')
    with serve(lambda *_: '[[B]]') as server:
        run(server, '--template', 'mine.txt', '--max_tokens', '0', '--summary', 's.json')
    texts = {body['messages'][0]['content'] for body in server.bodies}
    assert 'good/poor/question 0? Say [[A]]' in texts
    assert 'poor/good/question 0? Say [[A]]' in texts
    assert 'max_tokens' not in server.bodies[0]
    assert json.loads((folder / 's.json').read_text())['template'] == 'mine.txt'


def test_what_is_unknown_is_null(folder, capsys):
    with serve(lambda *_: 'no idea') as server:
        run(server, '--summary', 's.json')
    found = json.loads((folder / 's.json').read_text())
    assert found['rate'] == {'value': None, 'low': None, 'high': None}
    assert (found['flips'], found['unparsable'], found['counted']) == (None, 10, 0)
    out = capsys.readouterr().out
    assert '10 of 10 answers unparsable, 0 requests refused, 5 pairs left out' in out


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--concurrent', '0'], 'ConfigError: --concurrent 0: expected 1 or more'),
        (['--retries', '-1'], 'ConfigError: --retries -1'),
        (['--timeout', '0'], 'ConfigError: --timeout 0.0'),
        (['--template', 'none.txt'], 'ConfigError: --template none.txt: cannot be read'),
        (['--api_key_env', 'NO_KEY'], 'ChatError: --api_key_env NO_KEY: no such'),
        (['--base_url', 'host'], 'ChatError: base_url: expected'),
        (['--out', 'ours.jsonl'], 'DataError: ours.jsonl:1: expected a judgment'),
        ([], 'ChatError: http://127.0.0.1:9/v1/chat/completions: no answer in 1 tries'),
    ],
)
def test_bad_input_is_one_message(folder, monkeypatch, words, message):
    common = ['--base_url', 'http://127.0.0.1:9/v1', '--retries', '0', '--model', 'm']
    common += ['--out', 'out.jsonl', *words]
    monkeypatch.setattr('sys.argv', ['judge', 'ours.jsonl', 'theirs.json', *common])
    with pytest.raises(SystemExit) as stop:
        judge.run_main()
    assert str(stop.value).startswith(message)
