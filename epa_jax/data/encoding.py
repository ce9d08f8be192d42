"""Text to tokens: prompts and responses apart, so that both are exact."""

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from epa_jax.config import ConfigError
from epa_jax.data.sources import DataError

# Texts to tokenise responses behind; of different kinds, so that one does not merge with
# whatever a response begins with.
_ANCHORS = ('\n', '.', 'a', '1')


class Encoder:
    """Turns many texts into tokens at once, with one tokenizer.

    Prompt and response are tokenised apart, as they are when a model generates, so all
    responses share the prompt's tokens exactly and no token straddles the border.

    Attributes:
      eos: the end-of-sequence token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        """Checks that the tokenizer can end a response.

        Raises:
          ConfigError: no end-of-sequence token.
        """
        if tokenizer.eos_token_id is None or not tokenizer.eos_token:
            raise ConfigError(
                'model.tokenizer: no end-of-sequence token; responses could never end. '
                'Set eos_token in tokenizer_config.json'
            )
        self.eos = int(tokenizer.eos_token_id)
        self._tokenizer = tokenizer
        self._puts_space = self._puts_space_before_text()

    def prompts(self, texts: list[str], *, special: bool) -> list[list[int]]:
        """Tokens of prompts, open at their end.

        Args:
          texts: the prompts.
          special: whether the tokenizer is to add its special tokens, which a text that
            a chat template wrote already holds.
        """
        return [
            self._as_prompt(ids) if special else ids
            for ids in self._encode(texts, add_special_tokens=special)
        ]

    def _as_prompt(self, ids: list[int]) -> list[int]:
        """Plain text as the tokenizer gives it, open at its end, with at most one BOS."""
        while ids and ids[-1] == self.eos:  # some tokenizers close a text
            ids = ids[:-1]
        bos = self._tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:  # the text began with one
            ids = ids[1:]
        return ids

    def responses(self, texts: list[str], origins: list[str]) -> list[list[int]]:
        """Tokens of responses, with exactly one end of sequence, at the end of each.

        Args:
          texts: the responses.
          origins: where each was read.

        Raises:
          DataError: a response that merges with any text before it.
        """
        if self._puts_space:
            without_eos = self._behind_anchor(texts, origins)
        else:
            without_eos = self._encode(texts)
        return [[*ids, self.eos] for ids in without_eos]

    def _puts_space_before_text(self) -> bool:
        """Whether the tokenizer puts a space before any text, as SentencePiece does.

        Before a response that space would be a token the model never generates there.
        """
        return self._behind_anchor(['a'], ['model.tokenizer']) != self._encode(['a'])

    def _behind_anchor(self, texts: list[str], origins: list[str]) -> list[list[int]]:
        """Tokens of texts that continue another: behind an anchor, which is cut off."""
        found: dict[int, list[int]] = {}
        for anchor in _ANCHORS:
            left = [i for i in range(len(texts)) if i not in found]
            (before,) = self._encode([anchor])
            size = len(before)
            both = self._encoding([anchor + texts[i] for i in left], offsets=True)
            for i, ids, spans in zip(
                left, both['input_ids'], both['offset_mapping'], strict=True
            ):
                if size and ids[:size] == before and spans[size - 1][1] <= len(anchor):
                    found[i] = ids[size:]
        for i, text in enumerate(texts):
            if i not in found:
                raise DataError(
                    f'{origins[i]}: the tokenizer merges the start of {text[:20]!r} with '
                    'any text before it, so the tokens of a response cannot be told from '
                    'its prompt'
                )
        return [found[i] for i in range(len(texts))]

    def _encode(
        self, texts: list[str], add_special_tokens: bool = False
    ) -> list[list[int]]:
        return self._encoding(texts, add_special_tokens)['input_ids']

    def _encoding(
        self, texts: list[str], add_special_tokens: bool = False, offsets: bool = False
    ) -> Mapping[str, list[Any]]:
        """Many texts at once, which the tokenizer spreads over the processor's cores."""
        if not texts:
            return {'input_ids': [], 'offset_mapping': []}
        return self._tokenizer(
            texts,
            add_special_tokens=add_special_tokens,
            return_offsets_mapping=offsets,
            return_attention_mask=False,
            verbose=False,
        )
