"""Responses to prompts, from tokens to text: their random numbers and what ends them."""

import bisect
import collections
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from epa_jax.config import ConfigError
from epa_jax.data.prompts import Prompt
from epa_jax.evals.generation import ROWS, Stop, sample
from epa_jax.evals.sampling import Sampling
from epa_jax.policy import Policy


class Response(NamedTuple):
    """What a policy said.

    Attributes:
      text: without what ended it.
      tokens: how many there were, the end included.
      finished: whether it ended by itself, not by its length.
    """

    text: str
    tokens: int
    finished: bool


@dataclasses.dataclass(frozen=True)
class Responder:
    """Draws responses of a policy; the same seed gives a prompt the same response.

    Attributes:
      policy: the model.
      sampling: how to draw, with the tokens that end a response.
      stops: texts that end a response and are left out of it.
      seed: of the responses.
      rows: most rows computed together on each batch device.
    """

    policy: Policy
    sampling: Sampling
    stops: tuple[str, ...] = ()
    seed: int = 0
    rows: int = ROWS

    def __call__(self, ids: Sequence[np.ndarray]) -> list[Response]:
        """A response to each prompt; prompts given twice get two.

        Args:
          ids: arrays of token ids, as from `encode_prompts`.

        Raises:
          ConfigError: a prompt and its response are longer than the model reads.
        """
        texts = [text for text in self.stops if _token(self.policy, text) is None]
        found = sample(
            self.policy.params,
            self.policy.spec,
            self.policy.compute,
            ids,
            self.sampling,
            key=jax.random.key(self.seed),
            draws=draws_of(ids),
            stop=stop_at(self.policy, texts) if texts else None,
            mesh=self.policy.mesh,
            rows=self.rows,
        )
        return [self._response(tokens) for tokens in found]

    def _response(self, tokens: np.ndarray) -> Response:
        whole = str(self.policy.tokenizer.decode(tokens, skip_special_tokens=True))
        text = _before(whole, self.stops)
        ended = bool(len(tokens) and tokens[-1] in self.sampling.stop_ids)
        return Response(text, len(tokens), ended or text != whole)

    def check_lengths(self, prompts: Sequence[Prompt], ids: Sequence[np.ndarray]) -> None:
        """Refuses prompts that leave too little room.

        Raises:
          ConfigError: names the first one.
        """
        most, new = self.policy.spec.max_positions, self.sampling.max_new_tokens
        for prompt, tokens in zip(prompts, ids, strict=True):
            if len(tokens) + new > most:
                raise ConfigError(
                    f'{prompt.origin}: {len(tokens)} tokens, and with --max_new_tokens '
                    f'{new} more than the {most} the model reads'
                )


def draws_of(ids: Sequence[np.ndarray]) -> list[int]:
    """A number for each response, from its prompt and how often that came before.

    So a response depends on neither the order nor the company of the prompts.
    """
    seen: collections.Counter[bytes] = collections.Counter()
    out = []
    for tokens in ids:
        text = tokens.astype(np.int32).tobytes()
        digest = hashlib.sha256(text + seen[text].to_bytes(8, 'little')).digest()
        out.append(int.from_bytes(digest[:4], 'little'))
        seen[text] += 1
    return out


def stop_ids(policy: Policy, model: Path, texts: Sequence[str]) -> tuple[int, ...]:
    """Tokens that end a response: the tokenizer's, the model's, and named ones.

    Args:
      policy: its tokenizer is asked.
      model: a folder, possibly of a run, with or without a generation_config.json.
      texts: those that are special tokens count.
    """
    eos = policy.tokenizer.eos_token_id
    found = [] if eos is None else [int(eos)]
    for folder in (model, model / 'export'):
        path = folder / 'generation_config.json'
        if path.is_file():
            known = json.loads(path.read_text('utf-8')).get('eos_token_id') or []
            found += known if isinstance(known, list) else [known]
    named = [_token(policy, text) for text in texts]
    return tuple(dict.fromkeys([*found, *(id_ for id_ in named if id_ is not None)]))


def _token(policy: Policy, text: str) -> int | None:
    """The special token that a text is, which decoding would hide."""
    special = text in policy.tokenizer.all_special_tokens
    special |= text in policy.tokenizer.get_added_vocab()
    return int(policy.tokenizer.get_vocab()[text]) if special else None


def stop_at(policy: Policy, texts: Sequence[str]) -> Stop:
    """Ends a response with the token that completes one of `texts`."""

    def text_of(tokens: np.ndarray) -> str:
        return str(policy.tokenizer.decode(tokens, skip_special_tokens=True))

    def stop(response: np.ndarray) -> int | None:
        def holds(size: int) -> bool:
            return any(text in text_of(response[:size]) for text in texts)

        if not holds(len(response)):
            return None
        return bisect.bisect_left(range(1, len(response) + 1), True, key=holds) + 1

    return stop


def _before(text: str, stops: Sequence[str]) -> str:
    """The text before the first of `stops`."""
    found = [text.index(stop) for stop in stops if stop in text]
    return text[: min(found)] if found else text
