"""MT-Bench answers: two turns, the second after the policy's own first answer.

References:
  Judging LLM-as-a-judge with MT-Bench and Chatbot Arena, 2023, arXiv:2306.05685; layout of
  the answers and temperatures as in FastChat's fastchat.llm_judge.
"""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from epa_jax.data.layouts import RecordError
from epa_jax.data.prompts import Prompt, encode_prompts
from epa_jax.data.sources import DataError, records
from epa_jax.evals.responding import Responder, Response
from epa_jax.schema import DataConfig
from epa_jax.strict_json import JsonError
from epa_jax.types import Message

TEMPERATURES: Mapping[str, float] = {
    'writing': 0.7,
    'roleplay': 0.7,
    'extraction': 0.0,
    'math': 0.0,
    'coding': 0.0,
    'reasoning': 0.0,
    'stem': 0.1,
    'humanities': 0.1,
    'arena-hard-200': 0.0,
}
OTHERWISE = 0.7  # of other categories


class Question(NamedTuple):
    """One conversation to hold.

    Attributes:
      id: as in the file.
      category: decides the temperature.
      turns: what the user says.
      origin: where it was read.
    """

    id: int | str
    category: str
    turns: tuple[str, ...]
    origin: str

    @property
    def temperature(self) -> float:
        """Of its responses."""
        return TEMPERATURES.get(self.category, OTHERWISE)


class Conversation(NamedTuple):
    """A question with the responses so far.

    Attributes:
      question: what is asked.
      responses: one for each turn held.
      short: turns that the model's length left less room than was asked for.
      empty: of these, turns without any, whose response is empty.
    """

    question: Question
    responses: tuple[Response, ...] = ()
    short: int = 0
    empty: int = 0

    def prompt(self) -> Prompt:
        """What comes before the next response."""
        turns = [Message('user', self.question.turns[0])]
        for response, turn in zip(self.responses, self.question.turns[1:], strict=False):
            turns += [Message('assistant', response.text), Message('user', turn)]
        return Prompt(tuple(turns), self.question.origin, {})


def read_questions(source: str, limit: int = 0) -> list[Question]:
    """Reads records of `question_id`, `category` and `turns`.

    Args:
      source: as for `sources.records`.
      limit: read at most this many; 0 reads all.

    Raises:
      DataError: a source that cannot be opened, a bad record, an id used twice, or none.
    """
    out: list[Question] = []
    seen: dict[int | str, str] = {}
    for origin, record in records(source):
        if limit and len(out) == limit:
            break
        try:
            question = _question(record, origin)
            if question.id in seen:
                raise RecordError(
                    f'question_id {question.id} is that of {seen[question.id]}'
                )
        except RecordError as error:
            raise DataError(
                f'{origin}: {error}. Expected question_id, category and turns, as in '
                "FastChat's question.jsonl"
            ) from None
        seen[question.id] = origin
        out.append(question)
    if not out:
        raise DataError(f'{source}: no questions')
    return out


def _question(record: Any, origin: str) -> Question:
    if isinstance(record, JsonError):
        raise RecordError(str(record))
    if not isinstance(record, Mapping):
        raise RecordError(f'expected an object, found {type(record).__name__}')
    id_, category = record.get('question_id'), record.get('category')
    if isinstance(id_, bool) or not isinstance(id_, int | str):
        raise RecordError('question_id: expected a number or text')
    if not isinstance(category, str):
        raise RecordError('category: expected text')
    turns = record.get('turns')
    if not isinstance(turns, list) or not turns:
        raise RecordError('turns: expected a list of texts')
    if not all(isinstance(turn, str) and turn for turn in turns):
        raise RecordError('turns: expected texts that are not empty')
    return Question(id_, category, tuple(turns), origin)


def converse(
    questions: Sequence[Question], responder: Responder, cfg: DataConfig, choices: int = 1
) -> list[Conversation]:
    """Holds conversations, the same turn of all at once.

    Responses are stripped of white space at both ends, as FastChat's are. A later turn
    whose conversation leaves less room than `max_new_tokens` gets what there is.

    Args:
      questions: what is asked.
      responder: its temperature is replaced by that of each category.
      cfg: chat template and system prompt.
      choices: conversations for each question.

    Returns:
      The choices of the first question, of the second, ...

    Raises:
      ConfigError: a first turn that leaves too little room.
    """
    out = [Conversation(question) for question in questions for _ in range(choices)]
    for turn in range(max(len(question.turns) for question in questions)):
        open_ = [i for i, talk in enumerate(out) if turn < len(talk.question.turns)]
        prompts = [out[i].prompt() for i in open_]
        ids = encode_prompts(prompts, responder.policy.tokenizer, cfg)
        if turn == 0:
            responder.check_lengths(prompts, ids)
        found = _respond([out[i] for i in open_], ids, responder)
        for i, talk in zip(open_, found, strict=True):
            out[i] = talk
    return out


def _respond(
    talks: Sequence[Conversation], ids: Sequence[np.ndarray], responder: Responder
) -> list[Conversation]:
    """The conversations with their next responses; one draw for each temperature and room.

    A response follows from its own prompt and seed, so the grouping changes none.
    """
    wanted, most = responder.sampling.max_new_tokens, responder.policy.spec.max_positions
    groups: dict[tuple[float, int], list[int]] = collections.defaultdict(list)
    for i, (talk, tokens) in enumerate(zip(talks, ids, strict=True)):
        room = min(max(most - len(tokens), 0), wanted)
        groups[talk.question.temperature, room].append(i)
    out = list(talks)
    for (temperature, room), members in groups.items():
        found = [Response('', 0, False)] * len(members)
        if room:
            sampling = dataclasses.replace(
                responder.sampling, temperature=temperature, max_new_tokens=room
            )
            drawn = dataclasses.replace(responder, sampling=sampling)
            found = drawn([ids[i] for i in members])
        for i, response in zip(members, found, strict=True):
            out[i] = talks[i]._replace(
                responses=(
                    *talks[i].responses,
                    response._replace(text=response.text.strip()),
                ),
                short=talks[i].short + (room < wanted),
                empty=talks[i].empty + (room == 0),
            )
    return out


def answers(
    talks: Sequence[Conversation], model: str, time: float
) -> Iterator[dict[str, Any]]:
    """Records as FastChat's model_answer/MODEL.jsonl holds them.

    Args:
      talks: from `converse`, the choices of a question after one another.
      model: its name.
      time: in seconds since 1970.
    """
    grouped: dict[int | str, list[Conversation]] = {}
    for talk in talks:
        grouped.setdefault(talk.question.id, []).append(talk)
    for id_, mine in grouped.items():
        choices = [
            {'index': i, 'turns': [response.text for response in talk.responses]}
            for i, talk in enumerate(mine)
        ]
        text = json.dumps([model, id_, choices])
        yield {
            'question_id': id_,
            'answer_id': hashlib.sha256(text.encode()).hexdigest()[:22],
            'model_id': model,
            'choices': choices,
            'tstamp': time,
        }
