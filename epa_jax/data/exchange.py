"""What each process has read and made, given to all of them."""

import dataclasses
import io
import itertools
import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from epa_jax.config import ConfigError
from epa_jax.data.sources import DataError
from epa_jax.types import TokenExample

ROUND_BYTES = 2**26  # sent at once, over all processes
Error = ConfigError | DataError
KINDS: dict[str, type[Error]] = {kind.__name__: kind for kind in (ConfigError, DataError)}


@dataclasses.dataclass(frozen=True)
class Share:
    """What one process has made.

    Attributes:
      examples: in their order.
      report: of what became of its part; JSON values.
      error: why there is nothing, or None.
    """

    examples: Sequence[TokenExample]
    report: dict[str, Any]
    error: Error | None = None


def exchange(share: Share) -> list[Share]:
    """The shares of all processes, in order; every process calls it.

    Raises:
      ConfigError, DataError: that of the first process whose share holds one.
    """
    shares = [share]
    if jax.process_count() > 1:
        shares = [from_bytes(data) for data in _gather(to_bytes(share))]
    for found in shares:
        if found.error is not None:
            raise found.error
    return shares


def exchange_words(words: Any, error: Error | None = None) -> list[Any]:
    """The JSON values of all processes, in order; every process calls it.

    Args:
      words: a small JSON value.
      error: why this process has none, or None.

    Raises:
      ConfigError, DataError: that of the first process that gives one.
    """
    if jax.process_count() == 1:
        if error is not None:
            raise error
        return [words]
    sent = json.dumps([words, _named(error)]).encode()
    found = [json.loads(data) for data in _gather(sent)]
    for _, named in found:
        if named is not None:
            raise _error(named)
    return [words for words, _ in found]


def _named(error: Error | None) -> list[str] | None:
    if error is None:
        return None
    kind = next(name for name, kind in KINDS.items() if isinstance(error, kind))
    return [kind, str(error)]


def _error(named: list[str]) -> Error:
    return KINDS[named[0]](named[1])


def to_bytes(share: Share) -> bytes:
    """A share as arrays of numbers; nothing in it can be code."""
    examples = share.examples
    sequences = [ids for e in examples for ids in (e.prompt_ids, *e.response_ids)]
    words = {
        'origins': [e.origin for e in examples],
        'report': share.report,
        'error': _named(share.error),
    }
    file = io.BytesIO()
    np.savez(
        file,
        ids=_joined(sequences, np.int32),
        lengths=np.array([len(ids) for ids in sequences], np.int32),
        responses=np.array([len(e.response_ids) for e in examples], np.int32),
        roles=_joined([e.roles for e in examples], np.int8),
        ratings=_joined([e.ratings for e in examples], np.float32),
        keys=np.frombuffer(b''.join(e.prompt_key for e in examples), np.uint8),
        words=np.frombuffer(json.dumps(words).encode(), np.uint8),
    )
    return file.getvalue()


def from_bytes(data: bytes) -> Share:
    """The inverse of `to_bytes`."""
    with np.load(io.BytesIO(data)) as arrays:
        words = json.loads(arrays['words'].tobytes())
        sequences = iter(_split(arrays['ids'], arrays['lengths']))
        counts = arrays['responses']
        keys = arrays['keys'].tobytes()
        roles, ratings = (_split(arrays[name], counts) for name in ('roles', 'ratings'))
    width = len(keys) // max(len(counts), 1)
    examples = [
        TokenExample(
            prompt_ids=next(sequences),
            response_ids=tuple(itertools.islice(sequences, count)),
            roles=roles[i],
            ratings=ratings[i],
            prompt_key=keys[width * i : width * (i + 1)],
            origin=words['origins'][i],
        )
        for i, count in enumerate(counts.tolist())
    ]
    error = words['error'] and _error(words['error'])
    return Share(examples, words['report'], error)


def _joined(arrays: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *arrays]).astype(dtype)


def _split(array: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    ends = np.cumsum(lengths)
    return [array[end - n : end] for end, n in zip(ends, lengths, strict=True)]


def _gather(data: bytes) -> list[bytes]:
    """The bytes of every process, sent around in rounds of bounded size."""
    own = np.array(divmod(len(data), 2**20), np.int32)  # 64-bit integers are not sent
    sizes = [int(a) * 2**20 + int(b) for a, b in multihost_utils.process_allgather(own)]
    step = max(ROUND_BYTES // len(sizes), 1)
    whole = np.zeros(-(-max(sizes) // step) * step, np.uint8)
    whole[: len(data)] = np.frombuffer(data, np.uint8)
    rounds = [
        np.asarray(multihost_utils.process_allgather(part))
        for part in whole.reshape(-1, step)
    ]
    joined = np.concatenate(rounds, axis=1)
    return [row[:size].tobytes() for row, size in zip(joined, sizes, strict=True)]
