"""Questions that are answered by the likeliest of given texts."""

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from epa_jax.data.sources import DataError, records
from epa_jax.strict_json import JsonError

KINDS = (
    'query, choices and gold; context_options, continuation and gold; or context and '
    'continuation'
)


@dataclasses.dataclass(frozen=True)
class Option:
    """A text that may follow another.

    Attributes:
      context: what is given.
      continuation: what is scored, with the delimiter before it.
      length: characters of the continuation without the delimiter.
    """

    context: str
    continuation: str
    length: int


@dataclasses.dataclass(frozen=True)
class Question:
    """Some options, of which one is right.

    Attributes:
      options: one where the text is to be completed, two or more to choose from.
      gold: the right one.
      origin: where it was read, such as 'file.jsonl:12'.
    """

    options: tuple[Option, ...]
    gold: int
    origin: str


@dataclasses.dataclass(frozen=True)
class Task:
    """A set of questions of one kind.

    Attributes:
      name: the file's, without endings.
      questions: the questions.
      in_file: how many the file holds.
    """

    name: str
    questions: tuple[Question, ...]
    in_file: int

    @property
    def is_choice(self) -> bool:
        """Whether options are compared; else the only one is to be completed."""
        return len(self.questions[0].options) > 1


def read_task(
    source: str, *, delimiter: str | None = None, limit: int = 0, seed: int = 0
) -> Task:
    """Reads a task from a file, a `datasets` folder or a hub name.

    Records are of one kind:

    * query, choices (texts) and gold (index): the choices are compared after the query;
    * context_options (texts), continuation and gold: the contexts are compared by the
      likelihood of the same continuation;
    * context and continuation: the continuation is to be completed.

    Args:
      source: as for `sources.records`.
      delimiter: put between context and continuation. None is a space, and
        a line with 'Answer: ' after a query that begins with 'Question:' and has no
        'Answer:' at its end.
      limit: take at most this many questions, at random; 0 takes all.
      seed: of that choice.

    Raises:
      DataError: a source that cannot be opened, a record of no such kind, no questions,
        or questions of both kinds.
    """
    questions = [_question(record, delimiter, origin) for origin, record in records(source)]
    if not questions:
        raise DataError(f'{source}: no questions; expected records with {KINDS}')
    single = [len(question.options) == 1 for question in questions]
    if any(single) and not all(single):
        raise DataError(
            f'{source}: texts to complete (first {questions[single.index(True)].origin}) '
            f'and options to choose from (first {questions[single.index(False)].origin}) '
            'in one source; split it'
        )
    name = Path(source).name.removesuffix('.gz').rsplit('.', 1)[0] or source
    return Task(name, _some(questions, limit, seed), len(questions))


def _some(questions: Sequence[Question], limit: int, seed: int) -> tuple[Question, ...]:
    if not limit or limit >= len(questions):
        return tuple(questions)
    chosen = random.Random(seed).sample(range(len(questions)), limit)
    return tuple(questions[i] for i in sorted(chosen))


def _question(record: Any, delimiter: str | None, origin: str) -> Question:
    if isinstance(record, JsonError):
        raise DataError(f'{origin}: {record}')
    if not isinstance(record, dict):
        raise DataError(f'{origin}: expected an object, found {type(record).__name__}')
    pairs = _pairs(record, origin)
    gold = record.get('gold') if len(pairs) > 1 else 0
    if isinstance(gold, bool) or not isinstance(gold, int) or not 0 <= gold < len(pairs):
        raise DataError(
            f'{origin}: gold={gold!r}: expected the index of the right one of '
            f'{len(pairs)} options, counted from 0'
        )
    options = tuple(_option(context, text, delimiter) for context, text in pairs)
    return Question(options, gold, origin)


def _pairs(record: dict[str, Any], origin: str) -> list[tuple[str, str]]:
    """Contexts and continuations."""
    if 'choices' in record:
        query = _text(record, 'query', origin)
        return [(query, text) for text in _texts(record, 'choices', origin)]
    if 'context_options' in record:
        text = _text(record, 'continuation', origin)
        return [(context, text) for context in _texts(record, 'context_options', origin)]
    if 'context' in record:
        return [(_text(record, 'context', origin), _text(record, 'continuation', origin))]
    raise DataError(f'{origin}: keys are {sorted(record)}; expected {KINDS}')


def _text(record: dict[str, Any], key: str, origin: str) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        raise DataError(f'{origin}: {key}: expected text, found {type(value).__name__}')
    return _filled(value, key, origin)


def _filled(text: str, key: str, origin: str) -> str:
    if not text.strip():
        raise DataError(f'{origin}: {key} is empty')
    return text


def _texts(record: dict[str, Any], key: str, origin: str) -> list[str]:
    values = record[key]
    if (
        not isinstance(values, list)
        or len(values) < 2
        or not all(isinstance(value, str) for value in values)
    ):
        raise DataError(f'{origin}: {key}: expected a list of two texts or more')
    return [_filled(value, f'{key}[{i}]', origin) for i, value in enumerate(values)]


def _option(context: str, text: str, delimiter: str | None) -> Option:
    context, text = context.rstrip(), text.strip()
    if delimiter is None:
        asks = context.startswith('Question:') and not context.endswith('Answer:')
        delimiter = '\nAnswer: ' if asks else ' '
    # a space belongs to the word after it, in the tokens of all models
    given, space = delimiter.rstrip(), delimiter[len(delimiter.rstrip()) :]
    return Option(context + given, space + text, len(text))
