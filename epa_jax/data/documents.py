"""Plain text as sequences of which every token is predicted once."""

import dataclasses
import hashlib
import random
from collections.abc import Iterator, Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from epa_jax.config import ConfigError
from epa_jax.data.examples import ReadReport
from epa_jax.data.exchange import Share, exchange
from epa_jax.data.sources import DataError, records
from epa_jax.strict_json import JsonError, shown
from epa_jax.types import Role, TokenExample

CHUNK = 256  # documents tokenised at once


@dataclasses.dataclass(frozen=True)
class Document:
    """A text and where it was read."""

    text: str
    origin: str


def read_documents(
    source: str, key: str, *, bad_lines: str = 'error', limit: int = 0, own: bool = False
) -> tuple[list[Document], ReadReport]:
    """Reads the texts of a source.

    Args:
      source: as for `sources.records`; records hold a text each.
      key: under which key.
      bad_lines: 'error', or 'skip' to skip and count.
      limit: read at most this many; 0 reads all.
      own: read this process's part alone, which may hold none.

    Raises:
      DataError: a source that cannot be opened, a bad record, or no text at all.
    """
    report = ReadReport(source)
    documents: list[Document] = []
    for origin, record in records(source, own=own):
        if limit and len(documents) == limit:
            break
        reason = _fault(record, key)
        if reason is None:
            documents.append(Document(record[key], origin))
        elif bad_lines == 'error':
            raise DataError(
                f'{origin}: {reason}. Mend the line, name the key of the text with '
                "pretrain.text_key, or skip and count such lines with data.bad_lines='skip'"
            )
        else:
            report.skip(reason, origin)
    report.read = len(documents)
    if not own:
        report.require('texts')
    return documents, report


def _fault(record: object, key: str) -> str | None:
    """Why a record is no document, or None."""
    if isinstance(record, JsonError):
        return str(record)
    if not isinstance(record, dict):
        return f'expected an object, found {type(record).__name__}'
    if key not in record:
        return f'{key} is missing; keys are {shown(sorted(record))}'
    if not isinstance(record[key], str):
        return f'{key}: expected text, found {type(record[key]).__name__}'
    return None if record[key].strip() else f'{key} is empty'


def held_out_places(total: int, count: int, seed: int, key: str) -> set[int]:
    """Chooses `count` of `total` documents at random.

    Raises:
      ConfigError: nothing would remain; the message names the configuration's `key`.
    """
    if count >= total:
        raise ConfigError(
            f'{key}={count}: only {total} documents in all, none would remain'
        )
    return set(random.Random(seed).sample(range(total), count))


def sequences(
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    append_eos: bool = True,
) -> list[TokenExample]:
    """Token sequences of at most `max_tokens`; each token of a text is predicted once.

    A document starts with the beginning-of-sequence token (end-of-sequence where the
    tokenizer has none) and, if asked, ends with end-of-sequence. What does not fit goes
    on in another sequence, which starts with the last token of the one before.

    Args:
      documents: the texts of this process; those of the others are in what is returned.
      tokenizer: of the model; it has an end-of-sequence token.
      max_tokens: 2 or more.
      append_eos: see `schema.PretrainConfig`.
    """
    eos = int(tokenizer.eos_token_id)
    lead = eos if tokenizer.bos_token_id is None else int(tokenizer.bos_token_id)
    out = []
    for document, ids in _encoded(documents, tokenizer):
        whole = np.array([lead, *ids, *([eos] if append_eos else [])], np.int32)
        for start in range(0, len(whole) - 1, max_tokens - 1):
            out.append(_sequence(whole[start : start + max_tokens], document.origin))
    return [example for share in exchange(Share(out, {})) for example in share.examples]


def _encoded(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[Document, list[int]]]:
    for start in range(0, len(documents), CHUNK):
        part = documents[start : start + CHUNK]
        found = tokenizer(
            [document.text for document in part],
            add_special_tokens=False,
            return_attention_mask=False,
            verbose=False,
        )
        yield from zip(part, found['input_ids'], strict=True)


def _sequence(ids: np.ndarray, origin: str) -> TokenExample:
    """All but the first token are to be predicted."""
    return TokenExample(
        prompt_ids=ids[:1],
        response_ids=(ids[1:],),
        roles=np.array([Role.CHOSEN], np.int8),
        ratings=np.array([np.nan], np.float32),
        prompt_key=hashlib.sha256(ids.tobytes()).digest()[:16],
        origin=origin,
    )
