"""Responses to prompts, from tokens to text: their random numbers and what ends them."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from epa_jax.config import ConfigError
from epa_jax.data.prompts import Prompt
from epa_jax.evals.generation import ROWS, draws_of, sample
from epa_jax.evals.sampling import Sampling
from epa_jax.evals.stopping import before, stop_at
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
        found = sample(
            self.policy.params,
            self.policy.spec,
            self.policy.compute,
            ids,
            self.sampling,
            key=jax.random.key(self.seed),
            draws=draws_of(ids),
            stop=stop_at(self.policy.tokenizer, self.stops),
            mesh=self.policy.mesh,
            rows=self.rows,
        )
        return [self._response(tokens) for tokens in found]

    def _response(self, tokens: np.ndarray) -> Response:
        whole = str(self.policy.tokenizer.decode(tokens, skip_special_tokens=True))
        text = before(whole, self.stops)
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
