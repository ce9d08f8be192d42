"""From token examples to the packed micro-batches of every step, on grain."""

import dataclasses
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from epa_jax.data.negatives import NegativeRule, make_group
from epa_jax.data.packing import Layout, pack
from epa_jax.types import PackedBatch, TokenExample, TokenGroup

EVAL_CHUNK = 256  # groups packed together in one pass over held-out examples


@dataclasses.dataclass(frozen=True)
class Visits:
    """Which example is trained on when, and with which draw of negatives.

    Attributes:
      size: number of examples.
      prompts: prompts per optimiser step.
      seed: of the order.
      shuffle: a new order in every epoch.
      resample: negatives are drawn anew in every epoch.
    """

    size: int
    prompts: int
    seed: int
    shuffle: bool
    resample: bool

    def dataset(self) -> grain.MapDataset:
        """(draw, index) by position, without end."""
        order = grain.MapDataset.range(self.size)
        if self.shuffle:
            order = order.shuffle(seed=self.seed)

        def visit(position: int, index: int) -> tuple[int, int]:
            return (position // self.size if self.resample else 0), int(index)

        return order.repeat().map_with_index(visit)

    def first(self, steps: int) -> list[tuple[int, int]]:
        """The distinct visits of the first `steps` steps, in the order of their keys."""
        dataset = self.dataset()
        return sorted({dataset[i] for i in range(steps * self.prompts)})

    def num_keys(self, steps: int) -> int:
        """One more than the largest `TokenGroup.key` of the first `steps` steps."""
        epochs = -(-steps * self.prompts // self.size)
        return (epochs if self.resample else 1) * self.size


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Batches of a run. What a step holds depends on nothing but these values.

    Attributes:
      examples: the training set.
      rule: how negatives are drawn.
      visits: in which order.
      layout: shape of a micro-batch.
      ref_logps: float32 [number of keys, K], or None.
      row_slice: rows of each micro-batch that this process makes.
    """

    examples: Sequence[TokenExample]
    rule: NegativeRule
    visits: Visits
    layout: Layout
    ref_logps: np.ndarray | None = None
    row_slice: slice = slice(None)

    def group(self, visit: tuple[int, int]) -> TokenGroup:
        """The prompt of a visit with its negatives."""
        draw, index = visit
        return make_group(self.examples, index, draw, self.rule)

    def pack(self, groups: Sequence[TokenGroup]) -> list[PackedBatch]:
        """Micro-batches of these groups."""
        return pack(groups, self.layout, ref_logps=self.ref_logps, row_slice=self.row_slice)

    def steps(self) -> grain.DatasetIterator:
        """Endless iterator over the micro-batches of each step.

        It is `next`, `get_state()` and `set_state()`; the state is JSON and counts the
        steps handed out, whatever has been prepared ahead.
        """
        dataset = self.visits.dataset().map(self.group)
        dataset = dataset.batch(self.visits.prompts, batch_fn=list).map(self.pack)
        ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
        return iter(dataset.to_iter_dataset(ahead))

    def once(self) -> Iterator[PackedBatch]:
        """One pass over all examples in their order, with the first draw of negatives."""
        for start in range(0, len(self.examples), EVAL_CHUNK):
            end = min(start + EVAL_CHUNK, len(self.examples))
            yield from self.pack([self.group((0, i)) for i in range(start, end)])
