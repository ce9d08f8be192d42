"""Examples as tokens: chat template, exact loss spans, over-long text."""

import collections
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from epa_jax.config import ConfigError
from epa_jax.data.sources import DataError
from epa_jax.schema import DataConfig
from epa_jax.types import Example, Message, Role, TokenExample

_ANCHOR = '\n'


@dataclasses.dataclass
class TokeniseReport:
    """What became of the examples.

    Attributes:
      kept: examples that remain.
      dropped: examples by reason.
      dropped_responses: responses left out of examples that remain, by reason.
      truncated_prompts: prompts cut on the left.
      truncated_responses: responses cut on the right; each lost its end of sequence.
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
    first_dropped: dict[str, str] = dataclasses.field(default_factory=dict)


class _Drop(Exception):
    """An example to leave out; the message is the reason."""


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
        self._template = _find_template(tokenizer, cfg.chat_template)
        self._anchor = self._dummy_prefix_anchor()

    def example(self, example: Example, report: TokeniseReport) -> TokenExample | None:
        """Tokens of one example, or None when it is dropped; counts go to `report`.

        Raises:
          DataError: over-long text where the policy is 'error', or a chat template that
            does not put the response after the prompt.
        """
        try:
            return self._example(example, report)
        except _Drop as drop:
            reason = str(drop)
            report.dropped[reason] += 1
            report.first_dropped.setdefault(reason, example.origin)
            return None

    def _example(self, example: Example, report: TokeniseReport) -> TokenExample:
        prompt_text, response_texts = self._render(example)
        prompt_ids = self._fit_prompt(self._prompt_ids(prompt_text), example, report)
        kept: list[int] = []
        response_ids = []
        for k, text in enumerate(response_texts):
            ids = self._fit_response(self._response_ids(text), example, report)
            if ids is None:
                if example.roles[k] == Role.CHOSEN:
                    raise _Drop('the chosen response is too long')
                report.dropped_responses['too long'] += 1
                continue
            kept.append(k)
            response_ids.append(ids)
        if len(kept) < min(2, len(example.responses)):
            raise _Drop('no rejected response is short enough')
        ratings = example.ratings or (np.nan,) * len(example.responses)
        return TokenExample(
            prompt_ids=prompt_ids,
            response_ids=tuple(response_ids),
            roles=np.array([example.roles[k] for k in kept], np.int8),
            ratings=np.array([ratings[k] for k in kept], np.float32),
            prompt_key=prompt_key(example.prompt),
            origin=example.origin,
        )

    def _render(self, example: Example) -> tuple[str, list[str]]:
        """Prompt and responses as text that is ready to tokenise; without the EOS."""
        prompt = example.prompt
        if self._template is None:
            text = prompt if isinstance(prompt, str) else _plain_turns(self._system(prompt))
            return text, list(example.responses)
        if isinstance(prompt, str):
            prompt = (Message('user', prompt),)
        messages = [m._asdict() for m in self._system(prompt)]
        before = self._apply(messages, add_generation_prompt=True)
        texts = []
        for response in example.responses:
            answer = {'role': 'assistant', 'content': response}
            full = self._apply([*messages, answer], add_generation_prompt=False)
            if not full.startswith(before):
                raise DataError(
                    f'{example.origin}: the chat template does not put the response right '
                    'after its generation prompt; give a template that does by '
                    "data.chat_template=FILE, or use data.chat_template='none'"
                )
            texts.append(self._until_eos(full[len(before) :]))
        return before, texts

    def _system(self, prompt: Sequence[Message]) -> tuple[Message, ...]:
        if not self._cfg.system_prompt or prompt[0].role == 'system':
            return tuple(prompt)
        return (Message('system', self._cfg.system_prompt), *prompt)

    def _apply(self, messages: list[dict[str, str]], **kwargs: bool) -> str:
        return self._tokenizer.apply_chat_template(
            messages, chat_template=self._template, tokenize=False, **kwargs
        )

    def _until_eos(self, text: str) -> str:
        """The response up to the template's end of sequence, which is added as a token."""
        eos = self._tokenizer.eos_token
        return text.rpartition(eos)[0] if eos in text else text

    def _prompt_ids(self, text: str) -> list[int]:
        # a chat template writes its special tokens itself
        special = self._template is None
        ids = self._tokenizer(text, add_special_tokens=special, verbose=False).input_ids
        while special and ids and ids[-1] == self._eos:  # some tokenizers close a text
            ids = ids[:-1]
        return ids

    def _response_ids(self, text: str) -> list[int]:
        """Tokens of a response, with exactly one end of sequence, at its end."""
        ids = self._plain_ids(text)
        if self._anchor:
            anchored = self._plain_ids(_ANCHOR + text)
            if anchored[: len(self._anchor)] == self._anchor:
                ids = anchored[len(self._anchor) :]
        while ids and ids[-1] == self._eos:
            ids = ids[:-1]
        return [*ids, self._eos]

    def _dummy_prefix_anchor(self) -> list[int]:
        """Tokens of the anchor for tokenizers that put a space before any text.

        Before a response that space would be a token the model never generates there, so
        responses are tokenised behind an anchor, which is then cut off. [] when there is
        no such space.
        """
        anchor = self._plain_ids(_ANCHOR)
        behind = self._plain_ids(f'{_ANCHOR}a')[len(anchor) :]
        return [] if behind == self._plain_ids('a') else anchor

    def _plain_ids(self, text: str) -> list[int]:
        ids = self._tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return list(ids)

    def _fit_prompt(
        self, ids: list[int], example: Example, report: TokeniseReport
    ) -> np.ndarray:
        limit, policy = self._cfg.max_prompt_tokens, self._cfg.overlong_prompt
        if not ids:
            raise _Drop('the prompt has no tokens')
        if len(ids) > limit:
            self._refuse(policy, example, f'the prompt has {len(ids)} tokens', limit)
            if policy == 'drop':
                raise _Drop('the prompt is too long')
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
    kept = [example for example in out if example is not None]
    report.kept = len(kept)
    return kept, report


def prompt_key(prompt: str | tuple[Message, ...]) -> bytes:
    """Digest of a prompt; equal for equal prompts, blanks at the ends aside."""
    messages = [('user', prompt)] if isinstance(prompt, str) else list(prompt)
    text = json.dumps([(role, words.strip()) for role, words in messages])
    return hashlib.sha256(text.encode()).digest()[:16]


def _plain_turns(messages: Sequence[Message]) -> str:
    """Messages where there is no chat template, in HH-RLHF's plain layout."""
    names = {'user': 'Human', 'assistant': 'Assistant', 'system': 'System'}
    turns = [f'\n\n{names.get(m.role, m.role)}: {m.content}' for m in messages]
    return ''.join(turns) + '\n\nAssistant:'


def _find_template(tokenizer: PreTrainedTokenizerBase, setting: str) -> str | None:
    """The Jinja text to use, or None for plain text."""
    if setting == 'none':
        return None
    if setting == 'auto':
        template = tokenizer.chat_template
        return template['default'] if isinstance(template, dict) else template
    path = pathlib.Path(setting)
    if not path.is_file():
        raise ConfigError(
            f"data.chat_template={setting!r}: expected 'auto', 'none' or a file of Jinja"
        )
    return path.read_text(encoding='utf-8')
