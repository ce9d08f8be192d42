"""Requests over HTTP, against a real server."""

import base64
import socket
import traceback

import pytest

from epa_jax.evals.chat import ChatError, Endpoint, RequestError, key_from
from tests.chat_server import completion, serve

KEY = 'sk-secret-0123456789'
BODY = {'model': 'judge', 'messages': [{'role': 'user', 'content': 'ä?'}], 'seed': 3}


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'):
        monkeypatch.delenv(name, raising=False)


def ask(url, retries=0, **options):
    with Endpoint(
        url, KEY, retries=retries, timeout=5, backoff=0.01, **options
    ) as endpoint:
        return endpoint.complete(BODY)


def failure(reply, **options):
    """The message, of which no part may hold the key."""
    with serve(reply) as server, pytest.raises(ChatError) as error:
        ask(server.url, **options)
    assert KEY not in ''.join(traceback.format_exception(error.value))
    return str(error.value), server


def test_a_request_is_what_the_protocol_says():
    with serve(lambda body, number: 'yes, ü') as server:
        assert ask(server.url + '/') == 'yes, ü'
    ((method, path, headers),) = server.requests
    assert (method, path) == ('POST', '/v1/chat/completions')
    assert headers['Authorization'] == f'Bearer {KEY}'
    assert headers['Content-Type'] == 'application/json'
    assert server.bodies == [BODY]


def test_without_a_key_none_is_sent():
    with serve(lambda body, number: 'yes') as server, Endpoint(server.url) as endpoint:
        endpoint.complete(BODY)
        assert 'Authorization' not in server.requests[0][2]


@pytest.mark.parametrize('status', [429, 500, 503])
def test_it_tries_again(status):
    def reply(body, number):
        return (status, b'busy', {'Retry-After': 0}) if number < 2 else 'at last'

    with serve(reply) as server:
        assert ask(server.url, retries=3) == 'at last'
    assert len(server.requests) == 3


def test_a_broken_connection_is_tried_again():
    with serve(lambda body, number: 'yes' if number else (None, b'', {})) as server:
        assert ask(server.url, retries=1) == 'yes'


def test_it_waits_as_long_as_the_server_says(monkeypatch):
    waits = []
    monkeypatch.setattr('urllib3.util.retry.time.sleep', waits.append)

    def reply(body, number):
        return (429, b'', {'Retry-After': 7}) if not number else 'yes'

    with serve(reply) as server:
        ask(server.url, retries=1)
    assert waits == [7]


def test_waits_grow(monkeypatch):
    waits = []
    monkeypatch.setattr('urllib3.util.retry.time.sleep', waits.append)
    with serve(lambda body, number: (500, b'', {})) as server, pytest.raises(ChatError):
        ask(server.url, retries=4)
    for wait, least in zip(waits[-3:], (0.02, 0.04, 0.08), strict=True):
        assert least <= wait <= least + 0.01


def test_errors_that_stay_are_told_with_what_the_server_said():
    message, server = failure(lambda *_: (500, b'out of\nmemory', {}), retries=2)
    assert message.endswith('/v1/chat/completions: status 500 after 3 tries: out of memory')
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ('status', 'kind'),
    [
        (400, RequestError),
        (413, RequestError),
        (422, RequestError),
        (401, ChatError),
        (403, ChatError),
        (404, ChatError),
    ],
)
def test_errors_of_the_request_are_not_repeated(status, kind):
    with (
        serve(lambda *_: (status, {'error': 'no'}, {})) as server,
        pytest.raises(ChatError, match=f'status {status}: {{"error": "no"}}') as error,
    ):
        ask(server.url, retries=5)
    assert type(error.value) is kind
    assert len(server.requests) == 1


def test_what_stays_throttled_is_no_error_of_the_request():
    with (
        serve(lambda *_: (429, b'', {'Retry-After': 0})) as server,
        pytest.raises(ChatError) as error,
    ):
        ask(server.url, retries=1)
    assert type(error.value) is ChatError


def test_a_redirection_is_not_followed():
    message, server = failure(lambda *_: (302, b'', {'Location': '/v2'}), retries=2)
    assert 'status 302: an empty answer' in message
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    'body',
    [b'{"choices": [', b'<html>', b'\xff', b'[]', {'choices': []}, completion(['x'])],
)
def test_an_answer_of_another_form_is_refused(body):
    message, _ = failure(lambda *_: (200, body, {}))
    assert 'expected a chat completion, found ' in message


def test_a_refusal_is_an_empty_answer():
    with serve(lambda *_: (200, completion(None, refusal='no'), {})) as server:
        assert ask(server.url) == ''


def test_the_key_is_hidden_when_a_server_repeats_it():
    message, _ = failure(lambda *_: (401, f'bad key: Bearer {KEY}'.encode(), {}))
    assert message.endswith('status 401: bad key: Bearer [key]')
    message, _ = failure(lambda *_: (200, f'{{"key": "{KEY}"}}'.encode(), {}))
    assert message.endswith('{"key": "[key]"}')


def test_no_server_is_one_message():
    with socket.create_server(('127.0.0.1', 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ChatError, match=r'no answer in 2 tries: .*refused') as error:
        ask(f'http://127.0.0.1:{port}/v1', retries=1)
    assert KEY not in str(error.value)


def test_a_server_that_says_nothing_runs_into_the_timeout():
    with socket.create_server(('127.0.0.1', 0)) as silent:
        url = f'http://127.0.0.1:{silent.getsockname()[1]}/v1'
        with (
            Endpoint(url, KEY, retries=0, timeout=0.1) as endpoint,
            pytest.raises(ChatError, match=r'no answer in 1 tries: .*timed out'),
        ):
            endpoint.complete(BODY)


def test_it_goes_through_the_proxy_of_the_environment(monkeypatch):
    with serve(lambda *_: 'by proxy') as proxy:
        where = proxy.url.removesuffix('/v1').replace('//', '//me:p%40ss@')
        monkeypatch.setenv('http_proxy', where)
        monkeypatch.setenv('no_proxy', '127.0.0.1')
        with serve(lambda *_: 'itself') as server:
            assert ask(server.url) == 'itself'
        assert ask('http://judge.invalid/v1') == 'by proxy'
    ((_, path, headers),) = proxy.requests
    assert path == 'http://judge.invalid/v1/chat/completions'
    login = base64.b64encode(b'me:p@ss').decode()
    assert headers['Proxy-Authorization'] == f'Basic {login}'


@pytest.mark.parametrize(
    ('url', 'key', 'message'),
    [
        ('localhost:8000/v1', None, 'base_url: expected such as'),
        ('ftp://host/v1', None, 'base_url: expected such as'),
        ('http://me:secret@host/v1', None, 'base_url: expected no password'),
        ('http://host/v1?key=secret', None, 'base_url: expected no password'),
        ('http://host/v1', 'secret\nX-Header: 1', 'the API key holds characters'),
        ('http://host/v1', 'secret…', 'the API key holds characters'),
    ],
)
def test_what_cannot_be_sent_is_refused_and_not_shown(url, key, message):
    with pytest.raises(ChatError, match=message) as error:
        Endpoint(url, key)
    assert 'secret' not in str(error.value)


def test_the_key_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv('JUDGE_KEY', f' {KEY}\n')
    assert key_from('JUDGE_KEY') == KEY
    monkeypatch.setenv('JUDGE_KEY', '')
    assert key_from('JUDGE_KEY') is None
    with pytest.raises(ChatError, match='--api_key_env JUDGE_KEY: no such'):
        key_from('JUDGE_KEY', required=True)
