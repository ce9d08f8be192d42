"""What each optimiser step is made of: preference data and portions of streams."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import grain

from epa_jax.data.pipeline import Pipeline
from epa_jax.types import PackedBatch, TokenGroup


class Portion(NamedTuple):
    """Text of one stream in one step.

    Attributes:
      batches: micro-batches with one response a prompt.
      tokens: tokens to predict, over all micro-batches and processes.
    """

    batches: list[PackedBatch]
    tokens: int


class StepData(NamedTuple):
    """The data of one optimiser step.

    Attributes:
      preference: micro-batches of the response table.
      streams: a portion of each stream, by name.
    """

    preference: list[PackedBatch]
    streams: dict[str, Portion]


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Batches of a run; a step holds the same share of every source.

    Attributes:
      preference: of the preference data.
      streams: of the text beside it, by name.
    """

    preference: Pipeline
    streams: Mapping[str, Pipeline] = dataclasses.field(default_factory=dict)

    def steps(self) -> grain.DatasetIterator:
        """Endless iterator over `StepData`.

        It is `next`, `get_state()` and `set_state()`; the state is JSON and counts the
        steps handed out, of all sources at once, whatever has been prepared ahead.
        """
        groups = self.preference.groups()
        texts = {name: stream.groups() for name, stream in self.streams.items()}

        def step(number: int) -> StepData:
            portions = {
                name: portion(self.streams[name], text[number])
                for name, text in texts.items()
            }
            return StepData(self.preference.pack(groups[number]), portions)

        ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        numbers = grain.MapDataset.range(sys.maxsize)
        return iter(numbers.map(step).to_iter_dataset(ahead))


def portion(stream: Pipeline, groups: Sequence[TokenGroup]) -> Portion:
    """These groups of a stream, packed and counted."""
    tokens = sum(len(ids) for group in groups for ids in group.response_ids)
    return Portion(stream.pack(groups), tokens)
