r"""Records of the field's data sets as examples.

pairs  {prompt?, chosen, rejected}: TRL's layouts. Text or lists of messages; without a
       prompt it is what chosen and rejected share at the start. With a prompt, rejected
       may be a list of texts. score_chosen and score_rejected are ratings.
hh     {chosen, rejected}: HH-RLHF transcripts of "\n\nHuman:" and "\n\nAssistant:".
rated  {prompt, responses: [{text, rating}]}, {prompt, responses, ratings}, the same
       with rewards as `epa_jax.reward` writes them (ratings go before rewards), or
       UltraFeedback as published {instruction, completions: [{response, overall_score}]}.
sft    {prompt, completion} or {messages}: one response.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from epa_jax.strict_json import shown
from epa_jax.types import Example, Message, Role

Record = Mapping[str, Any]

_TURN = re.compile(r'\n\n(Human|Assistant):[ ]?')
_SPEAKERS = {'Human': 'user', 'Assistant': 'assistant'}
_MOST = float(np.finfo(np.float32).max)  # in which ratings are kept
_PROMPT_LIKE = ('question', 'instruction', 'input', 'query', 'context')


class RecordError(ValueError):
    """A record that is not what its layout says; the message is the reason alone."""


def to_example(record: Any, layout: str, origin: str) -> Example:
    """Reads one record.

    Args:
      record: as parsed from JSON or given by `datasets`.
      layout: 'auto' or a key of `LAYOUTS`.
      origin: where it stands, kept in the example.

    Raises:
      RecordError: the reason it cannot be read.
    """
    if not isinstance(record, Mapping):
        raise RecordError(f'expected an object, found {type(record).__name__}')
    if layout == 'auto':
        layout = detect(record)
    example = LAYOUTS[layout](record, origin)
    if not all(isinstance(text, str) for text in example.responses):
        raise RecordError('responses: expected text')
    return example


def detect(record: Record) -> str:
    """The layout of a record, by its keys.

    Raises:
      RecordError: none fits.
    """
    if 'chosen' in record and 'rejected' in record:
        chosen = record['chosen']
        bare = isinstance(chosen, str) and 'prompt' not in record
        return 'hh' if bare and chosen.startswith('\n\nHuman:') else 'pairs'
    if 'responses' in record or 'completions' in record:
        return 'rated'
    if 'completion' in record or 'messages' in record:
        if 'label' in record:
            raise RecordError(
                'unpaired feedback (completion with a label) is not supported'
            )
        return 'sft'
    raise RecordError(
        f'keys {shown(sorted(record))} fit no layout; expected chosen and rejected, '
        'responses and ratings or rewards, completions, or prompt and completion'
    )


def _pairs(record: Record, origin: str) -> Example:
    chosen, rejected = _get(record, 'chosen'), _get(record, 'rejected')
    prompt = record.get('prompt')
    if isinstance(chosen, str) and _is_texts(rejected):
        texts = (chosen, *rejected)
        roles = (Role.CHOSEN, *[Role.REJECTED] * len(rejected))
        return Example(prompt_of(_get(record, 'prompt')), texts, roles, None, origin)
    if prompt is not None and not isinstance(prompt, str | list | tuple):
        raise RecordError(f'prompt: expected text or messages, found {shown(prompt)}')
    if type(chosen) is not type(rejected):
        raise RecordError('chosen and rejected are of different types')
    if isinstance(chosen, str):
        if prompt is None:
            _refuse_other_prompts(record)
            prompt, (chosen, rejected) = _shared_text(chosen, rejected)
        prompt = prompt_of(prompt)
        texts = (chosen, rejected)
    else:
        prompt, texts = _pair_of_messages(prompt, _messages(chosen), _messages(rejected))
    scores = [record.get('score_chosen'), record.get('score_rejected')]
    ratings = None if None in scores else tuple(_number(score) for score in scores)
    return Example(prompt, texts, (Role.CHOSEN, Role.REJECTED), ratings, origin)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], str)


def _refuse_other_prompts(record: Record) -> None:
    """A prompt of another name must not be taken for one that chosen and rejected hold."""
    found = [key for key in _PROMPT_LIKE if key in record]
    if found:
        raise RecordError(
            f'prompt is missing, but there is {found[0]}: rename it to prompt'
        )


def _pair_of_messages(
    prompt: Any, chosen: tuple[Message, ...], rejected: tuple[Message, ...]
) -> tuple[tuple[Message, ...], tuple[str, str]]:
    """Prompt and responses of a conversational pair."""
    explicit = isinstance(prompt, list | tuple)
    if not explicit and chosen[0].role == 'assistant' and isinstance(prompt, str):
        prompt, explicit = [{'role': 'user', 'content': prompt}], True
    if explicit:
        before = _messages(prompt)
    else:
        before = chosen[: _shared(chosen[:-1], rejected[:-1])]
        chosen, rejected = chosen[len(before) :], rejected[len(before) :]
    if not before:
        raise RecordError('chosen and rejected share no prompt message')
    return before, (_answer(chosen, 'chosen'), _answer(rejected, 'rejected'))


def _answer(messages: Sequence[Message], name: str) -> str:
    roles = [m.role for m in messages]
    if roles != ['assistant']:
        raise RecordError(
            f'{name}: expected one assistant message after the prompt, found {roles}'
        )
    return messages[0].content


def _shared_text(chosen: str, rejected: str) -> tuple[str, tuple[str, str]]:
    """Splits off the common start; a space at the border goes to the responses."""
    size = _shared(chosen, rejected)
    if size and chosen[size - 1] == ' ':
        size -= 1
    if size == 0:
        raise RecordError('no prompt: chosen and rejected share nothing at the start')
    if size in (len(chosen), len(rejected)):
        raise RecordError('one of chosen and rejected is the start of the other')
    return chosen[:size], (chosen[size:], rejected[size:])


def _shared(first: Sequence[Any], second: Sequence[Any]) -> int:
    """How many elements two sequences have in common at the start."""
    pairs = zip(first, second, strict=False)
    return next(
        (i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second))
    )


def _hh(record: Record, origin: str) -> Example:
    chosen = _transcript(_get(record, 'chosen'), 'chosen')
    rejected = _transcript(_get(record, 'rejected'), 'rejected')
    if chosen[:-1] != rejected[:-1]:
        raise RecordError('chosen and rejected differ before their last Assistant turn')
    texts = (_answer(chosen[-1:], 'chosen'), _answer(rejected[-1:], 'rejected'))
    return Example(chosen[:-1], texts, (Role.CHOSEN, Role.REJECTED), None, origin)


def _transcript(text: Any, name: str) -> tuple[Message, ...]:
    parts = _TURN.split(text) if isinstance(text, str) else []
    if len(parts) < 5 or parts[0].strip():
        raise RecordError(
            f'{name}: expected a transcript of "\\n\\nHuman:" and "\\n\\nAssistant:" turns'
        )
    turns = zip(parts[1::2], parts[2::2], strict=True)
    return tuple(Message(_SPEAKERS[who], words.strip()) for who, words in turns)


def _rated(record: Record, origin: str) -> Example:
    name = 'prompt' if 'prompt' in record else 'instruction'
    prompt = prompt_of(_get(record, name))
    if 'completions' in record:
        items = _list(record, 'completions')
        texts = [_get(item, 'response') for item in items]
        ratings = [_number(_get(item, 'overall_score')) for item in items]
    elif 'ratings' in record or 'rewards' in record:
        texts = list(_list(record, 'responses'))
        kind = 'ratings' if 'ratings' in record else 'rewards'
        ratings = [_number(r) for r in _list(record, kind)]
    else:
        items = _list(record, 'responses')
        texts = [_get(item, 'text') for item in items]
        ratings = [_number(_get(item, 'rating')) for item in items]
    if len(texts) != len(ratings) or len(texts) < 2:
        raise RecordError(
            f'{len(texts)} responses, {len(ratings)} ratings; expected as many, 2 or more'
        )
    best = ratings.index(max(ratings))
    roles = [Role.REJECTED] * len(texts)
    roles[best] = Role.CHOSEN
    return Example(prompt, tuple(texts), tuple(roles), tuple(ratings), origin)


def _sft(record: Record, origin: str) -> Example:
    if 'messages' in record:
        messages = _messages(record['messages'])
        prompt: Any = messages[:-1]
        text = _answer(messages[-1:], 'messages')
        if not prompt:
            raise RecordError('messages: expected a prompt before the last message')
    else:
        prompt, text = prompt_of(_get(record, 'prompt')), _get(record, 'completion')
        if isinstance(text, list | tuple):
            text = _answer(_messages(text), 'completion')
    return Example(prompt, (text,), (Role.CHOSEN,), None, origin)


def _get(record: Any, key: str) -> Any:
    if not isinstance(record, Mapping) or key not in record or record[key] is None:
        raise RecordError(f'{key} is missing')
    return record[key]


def _list(record: Record, key: str) -> Sequence[Any]:
    value = _get(record, key)
    if not isinstance(value, list | tuple):
        raise RecordError(f'{key}: expected a list, found {shown(value)}')
    return value


def prompt_of(value: Any) -> str | tuple[Message, ...]:
    """A prompt: text, or a list of messages.

    Raises:
      RecordError: neither.
    """
    if isinstance(value, str):
        if not value:
            raise RecordError('prompt is empty')
        return value
    return _messages(value)


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise RecordError(f'expected text or messages, found {type(value).__name__}')
    out = []
    for message in value:
        role, content = _get(message, 'role'), _get(message, 'content')
        if not isinstance(role, str) or not isinstance(content, str):
            raise RecordError('a message needs a role and a content of text')
        out.append(Message(role, content))
    return tuple(out)


def _number(value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        raise RecordError(f'rating {shown(value)}: expected a number') from None
    except OverflowError:
        number = math.inf
    if not abs(number) <= _MOST:
        raise RecordError(f'rating {shown(value)}: expected a finite number')
    return number


LAYOUTS: Mapping[str, Callable[[Record, str], Example]] = {
    'pairs': _pairs,
    'hh': _hh,
    'rated': _rated,
    'sft': _sft,
}
