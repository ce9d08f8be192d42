"""Each process reads its part of a source, and all know what the whole holds."""

import collections
import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import jax

from epa_jax.config import ConfigError
from epa_jax.data.examples import ReadReport
from epa_jax.data.exchange import exchange_words
from epa_jax.data.sources import DataError
from epa_jax.distributed import own_part

Item = TypeVar('Item')
Result = TypeVar('Result', covariant=True)


class Read(Protocol[Result]):
    """Such as `examples.read_examples`, with what it needs to know bound."""

    def __call__(self, source: str, *, limit: int, own: bool) -> Result: ...


@dataclasses.dataclass(frozen=True)
class Reading(Generic[Item]):
    """A source, of which this process has read its part.

    Attributes:
      own: what this process has read, in order.
      keys: of all that any process has read, by process and in order.
      report: what the source held.
    """

    own: list[Item]
    keys: list[list[bytes]]
    report: ReadReport

    @property
    def all_keys(self) -> list[bytes]:
        """Keys of everything read, in order."""
        return list(itertools.chain.from_iterable(self.keys))

    @property
    def own_keys(self) -> list[bytes]:
        """Keys of `own`."""
        return self.keys[jax.process_index()]

    @property
    def keys_before(self) -> list[bytes]:
        """Keys of what comes before `own`."""
        return list(itertools.chain.from_iterable(self.keys[: jax.process_index()]))


def read_parts(
    source: str,
    read: Read[tuple[list[Item], ReadReport]],
    key: Callable[[Item], bytes],
    what: str,
    limit: int = 0,
) -> Reading[Item]:
    """Reads this process's part of a source; every process calls it.

    Args:
      source: what to read.
      read: how; returns what it read, and a report.
      key: what all processes are to know of an item.
      what: 'examples' or the like, for messages.
      limit: read at most this many; 0 reads all. Few as they are, each process then reads
        them all, and keeps its part.

    Raises:
      DataError, ConfigError: what cannot be read, in whichever part.
    """
    items, report, error = list[Item](), ReadReport(source), None
    try:
        items, report = read(source, limit=limit, own=not limit)
    except (ConfigError, DataError) as found:
        error = found  # the other processes must not wait for this one
    if limit:
        items = items[own_part(len(items))]
    words = {'keys': [key(item).hex() for item in items], 'report': vars(report)}
    shares = exchange_words(words, error)
    if not limit:
        report = _merged(source, [share['report'] for share in shares])
        report.require(what)
    return Reading(items, [_from_hex(share['keys']) for share in shares], report)


def _from_hex(keys: list[str]) -> list[bytes]:
    return [bytes.fromhex(key) for key in keys]


def _merged(source: str, reports: list[dict[str, Any]]) -> ReadReport:
    """The report of a whole source from the JSON values of those of its parts."""
    whole = ReadReport(source)
    for report in reports:
        whole.read += report['read']
        whole.skipped += collections.Counter(report['skipped'])
        whole.first_skipped = report['first_skipped'] | whole.first_skipped
    return whole
