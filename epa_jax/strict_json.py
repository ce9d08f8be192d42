"""JSON from files that nobody vouches for: a value, or one kind of error."""

import json
import re
import reprlib
from collections.abc import Callable
from typing import Any

_ESCAPED_SURROGATE = re.compile(r'\\u[dD][89a-fA-F]')
_HALF = 1500  # characters
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 60
_REPR.maxdict = _REPR.maxlist = 8


class JsonError(ValueError):
    """Text that is not JSON, or no text; the message is the reason alone."""


def parse(text: str, unique: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value of a JSON text; every string in it can be encoded as UTF-8.

    Args:
      text: decoded from UTF-8, perhaps with `errors='surrogateescape'`.
      unique: as `json.loads` has `object_pairs_hook`.

    Raises:
      JsonError: the only error but those of `unique`; also for what Python's parser has no
        place for: numbers of thousands of digits, thousands of brackets in one another.
    """
    if not text.isascii():
        check_text(text)
    try:
        value = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        line = f'line {error.lineno}, ' if error.lineno > 1 else ''
        raise JsonError(f'not JSON: {error.msg} ({line}column {error.colno})') from None
    except RecursionError:
        raise JsonError('not JSON that can be read: nested too deeply') from None
    except ValueError as error:
        if not str(error).startswith('Exceeds the limit'):
            raise
        raise JsonError('not JSON that can be read: a number too long') from None
    if _ESCAPED_SURROGATE.search(text):
        check_text(json.dumps(value, ensure_ascii=False))
    return value


def check_text(text: str) -> None:
    """Refuses half a surrogate pair, which no tokenizer and no file takes.

    Raises:
      JsonError: says what it comes from.
    """
    try:
        text.encode('utf-8')
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        if 0xDC80 <= code <= 0xDCFF:
            what = f'not UTF-8: byte {code - 0xDC00:#x}'
        else:
            what = f'half a surrogate pair, \\u{code:04x},'
        raise JsonError(f'{what} at character {error.start + 1}') from None


def brief(message: str) -> str:
    """A message without its middle, where something in a file made it far too long."""
    if len(message) <= 2 * _HALF:
        return message
    return f'{message[:_HALF]} ... {message[-_HALF:]}'


def shown(value: Any) -> str:
    """`repr`, shortened for a message however large the value is."""
    return _REPR.repr(value)
