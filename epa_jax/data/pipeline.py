"""From token examples to the packed micro-batches of every step, on grain."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import grain
import numpy as np

from epa_jax.data.negatives import NegativeRule, make_group
from epa_jax.data.packing import Layout, cheapest, pack
from epa_jax.types import PackedBatch, TokenExample, TokenGroup

CHUNK = 256  # groups packed together in one pass over many


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

    def steps(self, numbers: Iterable[int]) -> list[list[tuple[int, int]]]:
        """The visits of these steps, counted from 0."""
        dataset, size = self.dataset(), self.prompts
        return [[dataset[n * size + i] for i in range(size)] for n in numbers]

    def everything(self) -> list[tuple[int, int]]:
        """Every example once, with the first draw."""
        return [(0, index) for index in range(self.size)]


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Batches of a run. What a step holds depends on nothing but these values.

    Attributes:
      examples: the training set.
      rule: how negatives are drawn.
      visits: in which order.
      layouts: shapes that a micro-batch may have, shortest rows first; they differ in
        the length of rows and how many groups these hold.
      ref_logps: float32 [number of keys, K], or None.
      row_slice: rows of each micro-batch that this process makes.
    """

    examples: Sequence[TokenExample]
    rule: NegativeRule
    visits: Visits
    layouts: tuple[Layout, ...]
    ref_logps: np.ndarray | None = None
    row_slice: slice = dataclasses.field(default_factory=lambda: slice(None))

    @property
    def layout(self) -> Layout:
        """The layout with the longest rows, which holds every group."""
        return self.layouts[-1]

    def group(self, visit: tuple[int, int]) -> TokenGroup:
        """The prompt of a visit with its negatives."""
        draw, index = visit
        return make_group(self.examples, index, draw, self.rule)

    def pack(self, groups: Sequence[TokenGroup]) -> list[PackedBatch]:
        """Micro-batches of these groups, all with the layout that suits them best."""
        layout = cheapest([group.num_tokens for group in groups], self.layouts)
        return pack(groups, layout, ref_logps=self.ref_logps, row_slice=self.row_slice)

    def settled(self, groups: Sequence[TokenGroup]) -> 'Pipeline':
        """With the one layout that suits all of these best, for a pass over many."""
        layout = cheapest([group.num_tokens for group in groups], self.layouts)
        return dataclasses.replace(self, layouts=(layout,))

    def groups(self) -> grain.MapDataset:
        """The groups of each step, by its number, without end."""
        dataset = self.visits.dataset().map(self.group)
        return dataset.batch(self.visits.prompts, batch_fn=list)

    def once(self) -> Iterator[PackedBatch]:
        """One pass over all examples in their order, with the first draw of negatives."""
        groups = [self.group(v) for v in self.visits.everything()]
        yield from self.settled(groups).batches(groups)

    def batches(self, groups: Sequence[TokenGroup]) -> Iterator[PackedBatch]:
        """Micro-batches of many groups, packed a few hundred at a time."""
        for start in range(0, len(groups), CHUNK):
            yield from self.pack(groups[start : start + CHUNK])
