"""Response files of two policies, matched by prompt."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from epa_jax.data.layouts import RecordError, prompt_of
from epa_jax.data.sources import DataError, records
from epa_jax.strict_json import JsonError
from epa_jax.types import Message


class Pair(NamedTuple):
    """Two responses to one prompt.

    Attributes:
      prompt: the text, of a conversation its turns.
      ours: the response of the first file.
      theirs: that of the second.
      group: number of the prompt; several pairs may share it.
      origin: where ours was read.
    """

    prompt: str
    ours: str
    theirs: str
    group: int
    origin: str


class Matched(NamedTuple):
    """Pairs, and how many prompts had none.

    Attributes:
      pairs: in the order of the first file.
      only_ours: prompts that the second file lacks.
      only_theirs: prompts that the first file lacks.
    """

    pairs: list[Pair]
    only_ours: int
    only_theirs: int


class _Answers(NamedTuple):
    origin: str
    texts: list[str]


def match(ours: str, theirs: str) -> Matched:
    """Pairs the k-th response to a prompt with the other file's k-th.

    Args:
      ours: a file of records with `prompt` and `responses`, as epa_jax.sample writes
        them, or with `instruction` and `output`, as AlpacaEval's.
      theirs: likewise.

    Raises:
      DataError: a file that cannot be read, a bad record, no prompt in both, or a prompt
        with more responses in one file than in the other.
    """
    first, second = _read(ours), _read(theirs)
    pairs = []
    both = [prompt for prompt in first if prompt in second]
    for group, prompt in enumerate(both):
        mine, other = first[prompt], second[prompt]
        if len(mine.texts) != len(other.texts):
            raise DataError(
                f'{mine.origin}: {len(mine.texts)} responses to a prompt that has '
                f'{len(other.texts)} in {other.origin}; expected as many in both files'
            )
        for text, against in zip(mine.texts, other.texts, strict=True):
            pairs.append(Pair(prompt, text, against, group, mine.origin))
    if not pairs:
        raise DataError(f'{ours} and {theirs} share no prompt; expected the same prompts')
    return Matched(pairs, len(first) - len(both), len(second) - len(both))


def _read(source: str) -> dict[str, _Answers]:
    """Responses by prompt; those to a prompt given twice are joined."""
    out: dict[str, _Answers] = {}
    for origin, record in records(source):
        try:
            prompt, texts = _prompt_and_texts(record)
        except RecordError as error:
            raise DataError(
                f'{origin}: {error}. Expected prompt and responses, as epa_jax.sample '
                'writes them, or instruction and output, as AlpacaEval has them'
            ) from None
        out.setdefault(prompt, _Answers(origin, [])).texts.extend(texts)
    if not out:
        raise DataError(f'{source}: no responses')
    return out


def _prompt_and_texts(record: Any) -> tuple[str, list[str]]:
    if isinstance(record, JsonError):
        raise RecordError(str(record))
    if not isinstance(record, Mapping):
        raise RecordError(f'expected an object, found {type(record).__name__}')
    alpaca = 'instruction' in record
    prompt = record.get('instruction' if alpaca else 'prompt')
    texts = [record.get('output')] if alpaca else record.get('responses')
    if not isinstance(texts, list) or not texts:
        raise RecordError('no responses')
    if not all(isinstance(text, str) for text in texts):
        raise RecordError('a response that is no text')
    return _text(prompt_of(prompt)), texts


def _text(prompt: str | tuple[Message, ...]) -> str:
    """A prompt as a judge reads it; one message of the user is its text."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and prompt[0].role == 'user':
        return prompt[0].content
    return '\n\n'.join(f'{m.role.capitalize()}: {m.content}' for m in prompt)
