"""Examples of a source, and what it held."""

import collections
import dataclasses

from epa_jax.config import ConfigError
from epa_jax.data.layouts import LAYOUTS, RecordError, to_example
from epa_jax.data.sources import DataError, records
from epa_jax.strict_json import JsonError
from epa_jax.types import Example


@dataclasses.dataclass
class ReadReport:
    """What a source held.

    Attributes:
      source: as configured.
      read: examples read.
      skipped: bad lines by reason, only with `bad_lines='skip'`.
      first_skipped: where each reason was first met.
    """

    source: str
    read: int = 0
    skipped: collections.Counter[str] = dataclasses.field(
        default_factory=collections.Counter
    )
    first_skipped: dict[str, str] = dataclasses.field(default_factory=dict)

    def skip(self, reason: str, origin: str) -> None:
        """Counts a bad line."""
        self.skipped[reason] += 1
        self.first_skipped.setdefault(reason, origin)

    def require(self, what: str) -> None:
        """Refuses a source that held none of `what`.

        Raises:
          DataError: it did.
        """
        if not self.read:
            bad = sum(self.skipped.values())
            raise DataError(f'{self.source}: no {what}; {bad} bad lines')


def read_examples(
    source: str,
    *,
    layout: str = 'auto',
    bad_lines: str = 'error',
    limit: int = 0,
    own: bool = False,
) -> tuple[list[Example], ReadReport]:
    """Reads the examples of a source.

    Args:
      source: as for `sources.records`.
      layout: 'auto' or a key of `layouts.LAYOUTS`.
      bad_lines: 'error', or 'skip' to skip and count.
      limit: read at most this many examples; 0 reads all.
      own: read this process's part alone, which may hold none.

    Raises:
      DataError: a source that cannot be opened, a bad line, or no example at all.
      ConfigError: an unknown layout.
    """
    if layout != 'auto' and layout not in LAYOUTS:
        raise ConfigError(
            f'data.layout={layout!r}: expected auto or one of {", ".join(LAYOUTS)}'
        )
    report = ReadReport(source)
    examples: list[Example] = []
    for origin, record in records(source, own=own):
        if limit and len(examples) == limit:
            break
        try:
            if isinstance(record, JsonError):
                raise RecordError(str(record))
            examples.append(to_example(record, layout, origin))
        except RecordError as error:
            if bad_lines == 'error':
                raise DataError(
                    f'{origin}: {error}. Mend the line, or skip and count such lines with '
                    "data.bad_lines='skip'"
                ) from None
            report.skip(str(error), origin)
    report.read = len(examples)
    if not own:
        report.require('examples')
    return examples, report
