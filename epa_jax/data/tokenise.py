"""Examples as tokens: chat template, exact loss spans, over-long text."""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from epa_jax.config import ConfigError
from epa_jax.data.rendering import Renderer, Unusable
from epa_jax.data.sources import DataError
from epa_jax.schema import DataConfig
from epa_jax.types import Example, Message, Role, TokenExample

# Texts to tokenise responses behind; of different kinds, so that one does not merge with
# whatever a response begins with.
_ANCHORS = ('\n', '.', 'a', '1')


@dataclasses.dataclass
class TokeniseReport:
    """What became of the examples.

    Attributes:
      kept: examples that remain.
      dropped: examples by reason.
      dropped_responses: responses left out of examples that remain, by reason.
      truncated_prompts: prompts cut on the left.
      truncated_responses: responses cut on the right; each lost its end of sequence.
      eos_inside: responses that hold an end of sequence before their end.
      first_dropped: where each reason was first met.
    """

    kept: int = 0
    dropped: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter
    )
    dropped_responses: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter
    )
    truncated_prompts: int = 0
    truncated_responses: int = 0
    eos_inside: int = 0
    first_dropped: dict[str, str] = dataclasses.field(default_factory=dict)

    def drop(self, reason: str, origins: Sequence[str]) -> None:
        """Counts dropped examples."""
        if origins:
            self.dropped[reason] += len(origins)
            self.first_dropped.setdefault(reason, origins[0])

    def add(self, cut: 'TokeniseReport') -> None:
        """Adds what was cut from one example that is kept."""
        self.kept += 1
        self.dropped_responses += cut.dropped_responses
        self.truncated_prompts += cut.truncated_prompts
        self.truncated_responses += cut.truncated_responses
        self.eos_inside += cut.eos_inside


class Tokeniser:
    """Turns examples into tokens with one tokenizer and one configuration.

    Prompt and response are tokenised apart, as they are when a model generates, so all
    responses share the prompt's tokens exactly and no token straddles the border.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, cfg: DataConfig):
        """Checks that the tokenizer can end a response and finds the chat template.

        Raises:
          ConfigError: no end-of-sequence token, or no such template file.
        """
        if tokenizer.eos_token_id is None:
            raise ConfigError(
                'model.tokenizer: no end-of-sequence token; responses could never end. '
                'Set eos_token in tokenizer_config.json'
            )
        self._tokenizer = tokenizer
        self._cfg = cfg
        self._eos = int(tokenizer.eos_token_id)
        self._renderer = Renderer(tokenizer, cfg)
        self._puts_space = self._puts_space_before_text()

    def example(self, example: Example, report: TokeniseReport) -> TokenExample | None:
        """Tokens of one example, or None when it is dropped; counts go to `report`.

        Raises:
          ConfigError: a system prompt where there is no place for it.
          DataError: over-long text where the policy is 'error', or a chat template that
            refuses the messages or does not put the response after the prompt.
        """
        cut = TokeniseReport()
        try:
            tokens = self._example(example, cut)
        except Unusable as drop:
            report.drop(str(drop), [example.origin])
            return None
        report.add(cut)
        return tokens

    def _example(self, example: Example, report: TokeniseReport) -> TokenExample:
        prompt_text, response_texts = self._renderer.render(example)
        prompt_ids = self._fit_prompt(self._prompt_ids(prompt_text), example, report)
        kept: list[int] = []
        response_ids = []
        for k, text in enumerate(response_texts):
            ids = self._fit_response(
                self._response_ids(text, example.origin), example, report
            )
            if ids is None:
                if example.roles[k] == Role.CHOSEN:
                    raise Unusable('the chosen response is too long')
                report.dropped_responses['too long'] += 1
                continue
            kept.append(k)
            response_ids.append(ids)
        if len(kept) < min(2, len(example.responses)):
            raise Unusable('no rejected response is short enough')
        ratings = example.ratings or (np.nan,) * len(example.responses)
        return TokenExample(
            prompt_ids=prompt_ids,
            response_ids=tuple(response_ids),
            roles=np.array([example.roles[k] for k in kept], np.int8),
            ratings=np.array([ratings[k] for k in kept], np.float32),
            prompt_key=prompt_key(example.prompt),
            origin=example.origin,
        )

    def _prompt_ids(self, text: str) -> list[int]:
        if self._renderer.template is not None:  # it writes its special tokens itself
            return self._plain_ids(text)
        ids = list(self._tokenizer(text, verbose=False).input_ids)
        while ids and ids[-1] == self._eos:  # some tokenizers close a text
            ids = ids[:-1]
        bos = self._tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:  # the text began with one
            ids = ids[1:]
        return ids

    def _response_ids(self, text: str, origin: str) -> list[int]:
        """Tokens of a response, with exactly one end of sequence, at its end."""
        if self._puts_space:
            ids = self._behind_anchor(text, origin)
        else:
            ids = self._plain_ids(text)
        return [*ids, self._eos]

    def _puts_space_before_text(self) -> bool:
        """Whether the tokenizer puts a space before any text, as SentencePiece does.

        Before a response that space would be a token the model never generates there.
        """
        return self._behind_anchor('a', 'model.tokenizer') != self._plain_ids('a')

    def _behind_anchor(self, text: str, origin: str) -> list[int]:
        """Tokens of a text that continues another: behind an anchor, which is cut off."""
        for anchor in _ANCHORS:
            before = self._plain_ids(anchor)
            both = self._tokenizer(
                anchor + text,
                add_special_tokens=False,
                return_offsets_mapping=True,
                verbose=False,
            )
            size = len(before)
            merged = both.input_ids[:size] != before
            if size and not merged and both.offset_mapping[size - 1][1] <= len(anchor):
                return both.input_ids[size:]
        raise DataError(
            f'{origin}: the tokenizer merges the start of {text[:20]!r} with any text '
            'before it, so the tokens of a response cannot be told from its prompt'
        )

    def _plain_ids(self, text: str) -> list[int]:
        ids = self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return list(ids)

    def _fit_prompt(
        self, ids: list[int], example: Example, report: TokeniseReport
    ) -> np.ndarray:
        limit, policy = self._cfg.max_prompt_tokens, self._cfg.overlong_prompt
        if not ids:
            raise Unusable('the prompt has no tokens')
        if len(ids) > limit:
            self._refuse(policy, example, f'the prompt has {len(ids)} tokens', limit)
            if policy == 'drop':
                raise Unusable('the prompt is too long')
            report.truncated_prompts += 1
            bos = self._tokenizer.bos_token_id
            keep = [ids[0]] if bos is not None and ids[0] == bos and limit > 1 else []
            ids = [*keep, *ids[len(ids) - limit + len(keep) :]]
        return np.array(ids, np.int32)

    def _fit_response(
        self, ids: list[int], example: Example, report: TokeniseReport
    ) -> np.ndarray | None:
        limit, policy = self._cfg.max_response_tokens, self._cfg.overlong_response
        if len(ids) > limit:
            self._refuse(policy, example, f'a response has {len(ids)} tokens', limit)
            if policy == 'drop':
                return None
            report.truncated_responses += 1
            ids = ids[:limit]
        report.eos_inside += self._eos in ids[:-1]
        return np.array(ids, np.int32)

    def _refuse(self, policy: str, example: Example, what: str, limit: int) -> None:
        if policy == 'error':
            raise DataError(
                f'{example.origin}: {what}, limit {limit}; raise data.max_prompt_tokens or '
                'data.max_response_tokens, or choose another data.overlong_ policy'
            )


def tokenise(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, cfg: DataConfig
) -> tuple[list[TokenExample], TokeniseReport]:
    """Tokens of all examples, and what was cut or dropped."""
    tokeniser, report = Tokeniser(tokenizer, cfg), TokeniseReport()
    out = [tokeniser.example(example, report) for example in examples]
    return [example for example in out if example is not None], report


def prompt_key(prompt: str | tuple[Message, ...]) -> bytes:
    """Digest of a prompt; equal for equal prompts, blanks at the ends aside."""
    messages = [('user', prompt)] if isinstance(prompt, str) else list(prompt)
    text = json.dumps([(role, words.strip()) for role, words in messages])
    return hashlib.sha256(text.encode()).digest()[:16]
