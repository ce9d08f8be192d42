"""Prompts to answer, from any source."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from epa_jax import storage
from epa_jax.data.encoding import Encoder
from epa_jax.data.layouts import RecordError, prompt_of, to_example
from epa_jax.data.rendering import Renderer
from epa_jax.data.sources import DataError, records
from epa_jax.schema import DataConfig
from epa_jax.strict_json import JsonError, shown
from epa_jax.types import Example, Message

RESPONSES = ('chosen', 'responses', 'completions', 'completion', 'messages')


class Prompt(NamedTuple):
    """Something to respond to.

    Attributes:
      prompt: plain text, or messages.
      origin: where it was read.
      record: what else was known of it.
    """

    prompt: str | tuple[Message, ...]
    origin: str
    record: Mapping[str, Any]


def read_prompts(source: str, limit: int = 0) -> list[Prompt]:
    """Reads the prompts of a source.

    Args:
      source: a .txt file with a prompt a line, or as for `sources.records`; records
        hold `prompt` (text or messages), `instruction` (AlpacaEval), `turns` (MT-Bench,
        of which the first is taken), or are training examples or samples, whose
        responses are left out.
      limit: read at most this many; 0 reads all.

    Raises:
      DataError: a source that cannot be opened, a bad record, or no prompts.
    """
    if source.endswith('.txt'):
        prompts = _from_text(source)
    else:
        prompts = []
        for origin, record in records(source):
            if limit and len(prompts) == limit:
                break
            prompts.append(_prompt(record, origin))
    if not prompts:
        raise DataError(f'{source}: no prompts')
    return prompts[:limit] if limit else prompts


def _from_text(source: str) -> list[Prompt]:
    try:
        lines = storage.local(source).expanduser().read_text('utf-8-sig').split('\n')
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f'{source}: cannot be read: {error}') from error
    return [
        Prompt(line.rstrip('\r'), f'{source}:{number}', {})
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]


def _prompt(record: Any, origin: str) -> Prompt:
    if isinstance(record, JsonError):
        raise DataError(f'{origin}: {record}')
    try:
        if not isinstance(record, Mapping):
            raise RecordError(f'expected an object, found {type(record).__name__}')
        return Prompt(_find(record, origin), origin, record)
    except RecordError as error:
        raise DataError(
            f'{origin}: {error}. Expected prompt, instruction, turns, or an example as '
            'for training'
        ) from None


def _find(record: Mapping[str, Any], origin: str) -> str | tuple[Message, ...]:
    texts = record.get('responses')
    sampled = isinstance(texts, list) and all(isinstance(text, str) for text in texts)
    if any(key in record for key in RESPONSES) and not sampled:
        return to_example(record, 'auto', origin).prompt
    for key in ('prompt', 'instruction'):
        if record.get(key) is not None:
            return prompt_of(record[key])
    turns = record.get('turns')
    if isinstance(turns, list) and turns:
        return prompt_of(turns[0])
    raise RecordError(f'no prompt; keys are {shown(sorted(record))}')


def encode_prompts(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, cfg: DataConfig
) -> list[np.ndarray]:
    """Tokens of prompts, as in training: chat template, system prompt, beginning.

    Args:
      prompts: the prompts.
      tokenizer: of the model.
      cfg: `chat_template` and `system_prompt` of it are used.

    Raises:
      ConfigError: no such template file, or a system prompt where there is no place.
      DataError: the template refuses messages.
    """
    renderer = Renderer(tokenizer, cfg)
    texts = [
        renderer.render(Example(prompt.prompt, (), (), None, prompt.origin))[0]
        for prompt in prompts
    ]
    ids = Encoder(tokenizer).prompts(texts, special=renderer.template is None)
    for prompt, tokens in zip(prompts, ids, strict=True):
        if not tokens:
            raise DataError(f'{prompt.origin}: the prompt has no tokens')
    return [np.array(tokens, np.int32) for tokens in ids]
