"""One request to a model behind an OpenAI-compatible endpoint."""

import json
import os
import urllib.parse
import urllib.request
from typing import Any

import urllib3

from epa_jax.strict_json import parse

# Throttled, overloaded or restarting; other errors would only be repeated.
RETRIED = frozenset({408, 409, 425, 429, *range(500, 600)})
# Of the key, the account or the address: every other request would fail likewise.
OF_THE_ENDPOINT = frozenset({401, 402, 403, 404, 405})
SHOWN = 300  # characters of a server's answer in a message


class ChatError(RuntimeError):
    """The endpoint did not answer as expected; the message never holds the key."""


class RequestError(ChatError):
    """The endpoint refused this one request, such as one that is too long for it."""


class Endpoint:
    """Chat completions over HTTP; may be shared by threads.

    urllib3 comes with the hub's client already, waits and tries again by itself (as the
    server's Retry-After says) and is safe to share; the openai package would be a new
    dependency with two of its own for this one request.
    """

    def __init__(
        self,
        base_url: str,
        key: str | None = None,
        *,
        timeout: float = 120.0,
        retries: int = 5,
        backoff: float = 1.0,
        connections: int = 1,
    ):
        """Connects to nothing yet.

        Args:
          base_url: what '/chat/completions' is added to, such as http://localhost:8000/v1.
          key: sent as a bearer token; None sends none.
          timeout: seconds to connect, and between bytes.
          retries: tries after the first one.
          backoff: seconds; the waits are 0, then 2, 4, 8, ... times this, at most 60, and
            up to this much longer at random.
          connections: kept open.

        Raises:
          ChatError: a URL that is none or holds a password, or a key that no header can.
        """
        parts = urllib.parse.urlsplit(base_url)
        if parts.scheme not in ('http', 'https') or not parts.hostname:
            raise ChatError('base_url: expected such as http://localhost:8000/v1')
        if '@' in parts.netloc or parts.query:
            raise ChatError(
                'base_url: expected no password and no query; give the key apart'
            )
        if key is not None and not (key.isascii() and key.isprintable()):
            raise ChatError('the API key holds characters that cannot be sent')
        self.url = base_url.rstrip('/') + '/chat/completions'
        self._key = key
        self._tries = retries + 1
        self._timeout = timeout
        self._retry = urllib3.Retry(
            total=retries,
            status_forcelist=RETRIED,
            allowed_methods=None,  # also POST: a judgment asked twice does no harm
            backoff_factor=backoff,
            backoff_jitter=backoff,
            backoff_max=60,
            raise_on_status=False,
        )
        self._pool = _pool(parts, connections)

    def __enter__(self) -> 'Endpoint':
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.clear()

    def complete(self, request: dict[str, Any]) -> str:
        """The text of the first choice; empty if there is none, as after a refusal.

        Args:
          request: the body, with model and messages.

        Raises:
          RequestError: a status from 400 to 499 that says nothing of other requests.
          ChatError: no answer, another error status or no chat completion, after all
            tries.
        """
        headers = {'Content-Type': 'application/json', 'Accept': 'application/json'}
        if self._key is not None:
            headers['Authorization'] = f'Bearer {self._key}'
        try:
            answer = self._pool.request(
                'POST',
                self.url,
                body=json.dumps(request).encode(),
                headers=headers,
                timeout=self._timeout,
                retries=self._retry,
                redirect=False,  # a redirected POST would become a GET
            )
        except urllib3.exceptions.HTTPError as error:
            reason = error.reason if hasattr(error, 'reason') else error
            raise ChatError(
                f'{self.url}: no answer in {self._tries} tries: {self._hidden(str(reason))}'
            ) from None  # the cause may hold the request
        if answer.status != 200:
            kind = RequestError if _of_one_request(answer.status) else ChatError
            raise kind(
                f'{self.url}: status {answer.status}{self._after(answer.status)}: '
                f'{self._excerpt(answer.data)}'
            )
        return self._text(answer.data)

    def _text(self, data: bytes) -> str:
        try:
            text = parse(data.decode('utf-8'))['choices'][0]['message']['content']
        except (ValueError, LookupError, TypeError):
            text = data
        if not isinstance(text, str | None):
            raise ChatError(
                f'{self.url}: expected a chat completion, found {self._excerpt(data)}'
            )
        return text or ''

    def _after(self, status: int) -> str:
        return f' after {self._tries} tries' if status in RETRIED else ''

    def _excerpt(self, data: bytes) -> str:
        """The beginning of an answer on one line."""
        text = ' '.join(data.decode('utf-8', 'replace').split())
        return self._hidden(text)[:SHOWN] or 'an empty answer'

    def _hidden(self, text: str) -> str:
        """Without the key: a server may repeat what it was sent."""
        return text.replace(self._key, '[key]') if self._key else text


def _of_one_request(status: int) -> bool:
    return 400 <= status < 500 and status not in RETRIED | OF_THE_ENDPOINT


def _pool(parts: urllib.parse.SplitResult, connections: int) -> urllib3.PoolManager:
    """Connections, through the proxy that the environment names."""
    proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy or urllib.request.proxy_bypass(str(parts.hostname)):
        return urllib3.PoolManager(maxsize=connections)
    auth = urllib3.util.parse_url(proxy).auth
    headers = urllib3.make_headers(proxy_basic_auth=auth and urllib.parse.unquote(auth))
    return urllib3.ProxyManager(proxy, proxy_headers=headers, maxsize=connections)


def key_from(variable: str, required: bool = False) -> str | None:
    """An API key from the environment; None if there is none.

    Raises:
      ChatError: it is required and missing.
    """
    key = os.environ.get(variable, '').strip()
    if not key and required:
        raise ChatError(f'--api_key_env {variable}: no such environment variable, or empty')
    return key or None
