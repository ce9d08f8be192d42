"""Examples as tokens: chat template, exact loss spans, over-long text."""

import collections
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from epa_jax.config import ConfigError
from epa_jax.data.encoding import Encoder
from epa_jax.data.exchange import Share, exchange
from epa_jax.data.rendering import Renderer, Unusable
from epa_jax.data.sources import DataError
from epa_jax.schema import DataConfig
from epa_jax.types import Example, Message, Role, TokenExample

CHUNK = 1024  # examples tokenised at once
COUNTERS = ('dropped', 'dropped_responses')

Check = Callable[[TokenExample], str | None]


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
        self._add_cuts(cut)

    def merge(self, later: 'TokeniseReport') -> None:
        """Adds what became of later examples."""
        self.kept += later.kept
        self.dropped += later.dropped
        self.first_dropped = later.first_dropped | self.first_dropped
        self._add_cuts(later)

    def _add_cuts(self, cut: 'TokeniseReport') -> None:
        self.dropped_responses += cut.dropped_responses
        self.truncated_prompts += cut.truncated_prompts
        self.truncated_responses += cut.truncated_responses
        self.eos_inside += cut.eos_inside


class Tokeniser:
    """Turns examples into tokens with one tokenizer and one configuration."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, cfg: DataConfig):
        """Finds the chat template.

        Raises:
          ConfigError: no end-of-sequence token, or no such template file.
        """
        self._cfg = cfg
        self._encoder = Encoder(tokenizer)
        self._renderer = Renderer(tokenizer, cfg)
        self._bos = tokenizer.bos_token_id

    def examples(
        self, examples: Sequence[Example], report: TokeniseReport, unusable: Check
    ) -> list[TokenExample]:
        """Tokens of the examples that remain; what is cut or dropped is counted.

        Args:
          examples: the examples; their texts are in memory as tokens all at once.
          report: takes the counts.
          unusable: the reason to drop an example that fits, or None.

        Raises:
          ConfigError: a system prompt where there is no place for it.
          DataError: over-long text where the policy is 'error', or a chat template that
            refuses the messages or does not put the response after the prompt.
        """
        rendered = []
        for example in examples:
            try:
                rendered.append((example, *self._renderer.render(example)))
            except Unusable as drop:
                report.drop(str(drop), [example.origin])
        prompts = self._encoder.prompts(
            [prompt for _, prompt, _ in rendered], special=self._renderer.template is None
        )
        texts = [text for *_, texts in rendered for text in texts]
        origins = [example.origin for example, _, texts in rendered for _ in texts]
        answers = iter(self._encoder.responses(texts, origins))
        out = []
        for (example, _, texts), prompt in zip(rendered, prompts, strict=True):
            cut, responses = TokeniseReport(), list(itertools.islice(answers, len(texts)))
            try:
                tokens = self._fit(example, prompt, responses, cut)
                reason = unusable(tokens)
                if reason is not None:
                    raise Unusable(reason)
            except Unusable as drop:
                report.drop(str(drop), [example.origin])
                continue
            report.add(cut)
            out.append(tokens)
        return out

    def _fit(
        self,
        example: Example,
        prompt: list[int],
        responses: list[list[int]],
        report: TokeniseReport,
    ) -> TokenExample:
        """Cuts what is too long."""
        prompt_ids = self._fit_prompt(prompt, example, report)
        kept: list[int] = []
        response_ids = []
        for k, response in enumerate(responses):
            ids = self._fit_response(response, example, report)
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
            keep = ids[:1] if ids[0] == self._bos and limit > 1 else []
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
        report.eos_inside += self._encoder.eos in ids[:-1]
        return np.array(ids, np.int32)

    def _refuse(self, policy: str, example: Example, what: str, limit: int) -> None:
        if policy == 'error':
            raise DataError(
                f'{example.origin}: {what}, limit {limit}; raise data.max_prompt_tokens or '
                'data.max_response_tokens, or choose another data.overlong_ policy'
            )


def tokenise(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    cfg: DataConfig,
    *,
    unusable: Check = lambda example: None,
    dropped: Mapping[str, Sequence[Example]] | None = None,
) -> tuple[list[TokenExample], TokeniseReport]:
    """Tokens of the examples of all processes, and what was cut or dropped.

    Args:
      examples: those of this process.
      tokenizer: of the model.
      cfg: limits, policies and chat template.
      unusable: the reason to drop an example once it is tokens, or None to keep it.
      dropped: other examples of this process by the reason why they are none, to count.

    Raises:
      ConfigError: see `Tokeniser`.
      DataError: see `Tokeniser.examples`.
    """
    report = TokeniseReport()
    out: list[TokenExample] = []
    try:
        tokeniser = Tokeniser(tokenizer, cfg)
        for start in range(0, len(examples), CHUNK):
            out += tokeniser.examples(examples[start : start + CHUNK], report, unusable)
        for reason, others in (dropped or {}).items():
            report.drop(reason, [example.origin for example in others])
        share = Share(out, dict(vars(report)))
    except (ConfigError, DataError) as error:
        share = Share([], {}, error)  # the other processes must not wait for this one
    shares, whole = exchange(share), TokeniseReport()
    for found in shares:
        whole.merge(_report(found.report))
    return [example for found in shares for example in found.examples], whole


def _report(values: Mapping[str, Any]) -> TokeniseReport:
    """A report from its JSON values."""
    counted = {key: collections.Counter(values[key]) for key in COUNTERS}
    return TokeniseReport(**{**values, **counted})


def prompt_key(prompt: str | tuple[Message, ...]) -> bytes:
    """Digest of a prompt; equal for equal prompts, blanks at the ends aside."""
    messages = [('user', prompt)] if isinstance(prompt, str) else list(prompt)
    text = json.dumps([(role, words.strip()) for role, words in messages])
    return hashlib.sha256(text.encode()).digest()[:16]
