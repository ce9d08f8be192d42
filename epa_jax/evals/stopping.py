"""Where responses end: tokens, and texts that no single token need be."""

import bisect
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from epa_jax.evals.generation import Stop
from epa_jax.formats.files import read_json
from epa_jax.formats.names import FormatError


def stop_ids(
    tokenizer: PreTrainedTokenizerBase, model: Path, texts: Sequence[str]
) -> tuple[int, ...]:
    """Tokens that end a response: the tokenizer's, the model's, and named ones.

    Args:
      tokenizer: of the model.
      model: folder with generation_config.json, or of a run whose export has it.
      texts: stops, of which those that are special tokens are taken.
    """
    eos = tokenizer.eos_token_id
    found = [] if eos is None else [int(eos)]
    for folder in (model, model / 'export'):
        path = folder / 'generation_config.json'
        if path.is_file():
            known = read_json(path).get('eos_token_id') or []
            known = known if isinstance(known, list) else [known]
            if not all(type(id_) is int and 0 <= id_ < 2**31 for id_ in known):
                raise FormatError(f'{path}: eos_token_id: expected token ids')
            found += known
    named = [special_token(tokenizer, text) for text in texts]
    return tuple(dict.fromkeys([*found, *(id_ for id_ in named if id_ is not None)]))


def special_token(tokenizer: PreTrainedTokenizerBase, text: str) -> int | None:
    """The special token that a text is, which decoding would hide."""
    special = text in tokenizer.all_special_tokens
    special |= text in tokenizer.get_added_vocab()
    return int(tokenizer.get_vocab()[text]) if special else None


def stop_at(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Stop | None:
    """Ends a response with the token that completes one of `texts`.

    Special tokens among the texts are left to `stop_ids`; None where no text remains.
    """
    own = [text for text in texts if special_token(tokenizer, text) is None]

    def stop(response: np.ndarray) -> int | None:
        def holds(size: int) -> bool:
            found = str(tokenizer.decode(response[:size], skip_special_tokens=True))
            return any(text in found for text in own)

        if not holds(len(response)):
            return None
        return bisect.bisect_left(range(1, len(response) + 1), True, key=holds) + 1

    return stop if own else None


def before(text: str, stops: Sequence[str]) -> str:
    """The text before the first of `stops`."""
    found = [text.index(stop) for stop in stops if stop in text]
    return text[: min(found)] if found else text
