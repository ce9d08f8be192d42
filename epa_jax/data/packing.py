"""Rows of tokens from groups of one prompt and its responses."""

import bisect
import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from epa_jax.config import ConfigError
from epa_jax.types import PackedBatch, TokenGroup

ROW_MULTIPLE = 128  # automatic row lengths are multiples of it


@dataclasses.dataclass(frozen=True)
class Layout:
    """The static shape of a micro-batch.

    Attributes:
      rows: rows, over all processes (B).
      row_length: tokens per row (T).
      groups_per_row: most groups in a row (G).
      responses: most responses of a group (K).
    """

    rows: int
    row_length: int
    groups_per_row: int
    responses: int


def automatic_row_length(longest_group: int) -> int:
    """Shortest multiple of 128 that holds the largest prompt with its responses."""
    return max(-(-longest_group // ROW_MULTIPLE), 1) * ROW_MULTIPLE


def own_rows(layout: Layout) -> slice:
    """Rows of a micro-batch that this process makes."""
    share = layout.rows // jax.process_count()
    return slice(share * jax.process_index(), share * (jax.process_index() + 1))


def plan(lengths: Sequence[int], layout: Layout) -> list[list[int]]:
    """Which groups share a row: best fit, longest first.

    Args:
      lengths: tokens of each group.
      layout: shape of a row.

    Returns:
      Indices of groups by row; every group is in exactly one row.

    Raises:
      ConfigError: a group is longer than a row.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (room, row) that may take more, sorted
    for i in order:
        check_length(lengths[i], layout)
        best = bisect.bisect_left(open_rows, (lengths[i], 0))
        if best < len(open_rows):
            room, row = open_rows.pop(best)
        else:
            room, row = layout.row_length, len(rows)
            rows.append([])
        rows[row].append(i)
        if len(rows[row]) < layout.groups_per_row:
            bisect.insort(open_rows, (room - lengths[i], row))
    return rows


def cells(lengths: Sequence[int], layout: Layout) -> int:
    """Cells computed for groups of these lengths, padding and empty rows included.

    Raises:
      ConfigError: a group is longer than a row.
    """
    micro_batches = -(-len(plan(lengths, layout)) // layout.rows)
    return micro_batches * layout.rows * layout.row_length


def cheapest(lengths: Sequence[int], layouts: Sequence[Layout]) -> Layout:
    """The layout that computes the fewest cells for groups of these lengths.

    Args:
      lengths: tokens of each group.
      layouts: to choose from, shortest rows first.

    Raises:
      ConfigError: a group is longer than the longest rows.
    """
    longest = max(lengths, default=0)
    fitting = [one for one in layouts if one.row_length >= longest] or [layouts[-1]]
    if len(fitting) == 1:
        return fitting[0]
    return min(fitting, key=lambda layout: cells(lengths, layout))


def check_length(length: int, layout: Layout) -> None:
    """Refuses a prompt with its responses that no row holds.

    Raises:
      ConfigError: it is longer than a row.
    """
    if length > layout.row_length:
        raise ConfigError(
            f'a prompt with its responses has {length} tokens and rows hold '
            f'{layout.row_length}; set batch.row_length to '
            f'{automatic_row_length(length)} or more, or 0 to choose it'
        )


def pack(
    groups: Sequence[TokenGroup],
    layout: Layout,
    *,
    ref_logps: np.ndarray | None = None,
    row_slice: slice = slice(None),
) -> list[PackedBatch]:
    """Packs the groups of a step into micro-batches of one static shape.

    Args:
      groups: the groups.
      layout: shape of a micro-batch.
      ref_logps: float32 [number of keys, K], looked up by `TokenGroup.key`, or None.
      row_slice: rows of each micro-batch to make; another process makes the others.

    Returns:
      As many micro-batches as the groups need; the last is filled with empty rows.

    Raises:
      ConfigError: a group is longer than a row.
      ValueError: a group has more than K responses.
    """
    rows = plan([g.num_tokens for g in groups], layout)
    batches = []
    for start in range(0, len(rows), layout.rows):
        members = rows[start : start + layout.rows]
        members += [[] for _ in range(layout.rows - len(members))]
        chosen = [[groups[i] for i in row] for row in members[row_slice]]
        batches.append(_fill(chosen, layout, ref_logps))
    return batches


def _fill(
    rows: list[list[TokenGroup]], layout: Layout, ref_logps: np.ndarray | None
) -> PackedBatch:
    batch = empty(len(rows), layout, with_reference=ref_logps is not None)
    for b, row in enumerate(rows):
        token_at = score_at = 0
        for g, group in enumerate(row):
            _check_responses(group, layout)
            token_at, score_at = _place(batch, b, g, group, token_at, score_at)
            if ref_logps is not None and batch.ref_logps is not None:
                batch.ref_logps[b, g] = ref_logps[group.key]
    return batch


def _check_responses(group: TokenGroup, layout: Layout) -> None:
    if len(group.response_ids) > layout.responses:
        raise ValueError(
            f'group {group.key} has {len(group.response_ids)} responses; the table has '
            f'{layout.responses} columns'
        )


def empty(rows: int, layout: Layout, *, with_reference: bool) -> PackedBatch:
    """A micro-batch of padding."""

    def tokens() -> np.ndarray:
        return np.zeros((rows, layout.row_length), np.int32)

    table = (rows, layout.groups_per_row, layout.responses)
    return PackedBatch(
        tokens=tokens(),
        positions=tokens(),
        segments=tokens(),
        branches=tokens(),
        score_positions=tokens(),
        score_targets=tokens(),
        score_slots=tokens() + layout.groups_per_row * layout.responses,
        lengths=np.zeros(table, np.int32),
        roles=np.zeros(table, np.int8),
        ratings=np.full(table, np.nan, np.float32),
        keys=np.full(table[:2], -1, np.int32),
        ref_logps=np.zeros(table, np.float32) if with_reference else None,
    )


def _place(
    batch: PackedBatch, b: int, g: int, group: TokenGroup, token_at: int, score_at: int
) -> tuple[int, int]:
    """Writes one group into row `b`; returns where the next one starts."""
    prompt_size = len(group.prompt_ids)
    first = token_at
    size = group.num_tokens
    batch.segments[b, first : first + size] = g + 1
    batch.tokens[b, first : first + prompt_size] = group.prompt_ids
    batch.positions[b, first : first + prompt_size] = np.arange(prompt_size)
    token_at += prompt_size
    for k, ids in enumerate(group.response_ids):
        here = slice(token_at, token_at + len(ids))
        batch.tokens[b, here] = ids
        batch.positions[b, here] = prompt_size + np.arange(len(ids))
        batch.branches[b, here] = k + 1
        scored = slice(score_at, score_at + len(ids))
        # each token is predicted by the one before it, the first by the prompt's last
        batch.score_positions[b, scored] = np.arange(token_at - 1, token_at - 1 + len(ids))
        batch.score_positions[b, score_at] = first + prompt_size - 1
        batch.score_targets[b, scored] = ids
        batch.score_slots[b, scored] = g * batch.roles.shape[2] + k
        batch.lengths[b, g, k] = len(ids)
        token_at += len(ids)
        score_at += len(ids)
    count = len(group.response_ids)
    batch.roles[b, g, :count] = group.roles
    batch.ratings[b, g, :count] = group.ratings
    batch.keys[b, g] = group.key
    return token_at, score_at


def real_tokens(batch: PackedBatch) -> int:
    """Cells of a micro-batch that are not padding."""
    return int(np.count_nonzero(batch.segments))
