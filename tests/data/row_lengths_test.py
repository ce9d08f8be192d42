"""The lengths of rows against an exhaustive search that packs by itself."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epa_jax.data import packing, row_lengths
from epa_jax.data.packing import Layout

sizes = st.integers(1, 500)
some_steps = st.lists(st.lists(sizes, min_size=4, max_size=4), min_size=1, max_size=4)


def layout_of(rows, groups=4):
    return lambda length: Layout(rows, length, groups, 2)


def choose(steps, rows=1, longest=0, total_steps=1, **given):
    longest = longest or max(itertools.chain(*steps))
    return row_lengths.choose(steps, longest, layout_of(rows), total_steps, **given)


def computed(steps, lengths, rows=1):
    """Cells of these steps, each with the length that suits it best."""
    total = 0
    for step in steps:
        best = None
        for length in lengths:
            if length >= max(step):
                needed = len(packing.plan(step, layout_of(rows)(length)))
                cells = int(np.ceil(needed / rows)) * rows * length
                best = cells if best is None else min(best, cells)
        total += best
    return total


@given(some_steps, st.integers(1, 3), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_lengths_are_the_cheapest(steps, rows, most):
    found = choose(steps, rows, most=most)
    longest = max(itertools.chain(*steps))
    least = -(-longest // 128) * 128
    every = range(128, int(1.5 * least) + 1, 128)
    assert set(found) <= set(every)
    assert found == sorted(found)
    assert len(found) <= most

    def cost(lengths):
        return computed(steps, lengths, rows) * (0.95 + 0.05 * max(lengths) / least)

    others = itertools.chain(*(itertools.combinations(every, k + 1) for k in range(most)))
    assert cost(found) <= min(cost(o) for o in others if o[-1] >= longest) * (1 + 1e-9)


def test_a_length_by_hand():
    # four prompts of 200: one to a row of 256, two to one of 512 would need 400
    steps = [[200, 200, 200, 200]]
    assert choose(steps, most=1) == [256]  # 384 holds no second one
    assert choose([[190, 190, 190, 190]], most=1) == [384]  # 768 cells, not 1,024


def test_empty_rows_count():
    assert choose([[190] * 5], 1, most=1) == [384]  # 3 rows: 1,152 cells, not 1,280
    assert choose([[190] * 6], 4, most=1) == [384]  # 4 rows, not 8
    assert choose([[190] * 4], 4, most=1) == [256]  # 4 rows in any case


def test_ties_go_to_the_shortest():
    # a row of 512 holds what four of 128 do
    assert choose([[100] * 4], limit=512, most=2) == [128]


def test_steps_that_differ_get_lengths_that_differ():
    steps = [[190] * 4, [250] * 4]
    assert choose(steps, most=2) == [256, 384]
    assert computed(steps, [256, 384]) < min(computed(steps, [n]) for n in (256, 384))


def test_another_length_has_to_pay_for_its_compilation():
    """Of two lengths, the second saves 1/8 of the cells: 10 steps in 80."""
    steps = [[190] * 4, [250] * 4]
    one, two = computed(steps, [256]), computed(steps, [256, 384])
    assert (one, two) == (2048, 1792)
    assert choose(steps, total_steps=50) == [256]
    assert choose(steps, total_steps=200) == [256, 384]  # long rows cost a little more
    assert choose(steps, total_steps=50, most=2) == [256, 384]


def test_the_longest_prompt_fits_though_no_step_counted_has_it():
    found = choose([[100, 100]], longest=700, most=2)
    assert found == [128, 768]
    assert choose([[100, 100]], longest=700, most=1) == [768]


def test_a_limit_is_the_only_length_unless_more_are_asked_for():
    assert choose([[100] * 4], limit=200) == [200]
    assert choose([[100] * 4], limit=200, most=1) == [200]
    assert max(choose([[190] * 4], limit=256, most=3)) == 256


@pytest.mark.parametrize(('longest', 'most'), [(8192, 2), (100_000, 1)])
def test_long_rows_are_compared_in_coarse_steps(longest, most):
    found = choose([[longest, 70, 900, 2000]], most=most)
    assert found[-1] >= longest
    assert all(length % 128 == 0 for length in found)


def test_sampled_steps_are_spread_over_the_run():
    assert row_lengths.sampled(3, 16) == [0, 1, 2]
    steps = row_lengths.sampled(10_000, 16)
    assert (steps[0], steps[-1], len(steps)) == (0, 9_999, 64)
    assert len(row_lengths.sampled(10_000, 256)) == 16
    assert len(row_lengths.sampled(10_000, 100_000)) == 8
