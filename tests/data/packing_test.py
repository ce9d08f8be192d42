"""Packing against a brute-force unpacking, and against a plain-loop packing."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epa_jax.config import ConfigError
from epa_jax.data import packing
from epa_jax.data.packing import Layout
from epa_jax.types import Role
from tests import tiny
from tests.data import token_examples

LAYOUT = Layout(rows=2, row_length=32, groups_per_row=4, responses=3)
FIELDS = ('tokens', 'positions', 'segments', 'branches', 'lengths', 'roles', 'keys')


def unpack(batch, b):
    """Groups of row `b`: key -> (prompt, responses), read off tokens and their labels."""
    out = {}
    for g, key in enumerate(batch.keys[b]):
        if key < 0:
            continue
        where = batch.segments[b] == g + 1
        by_branch = {
            int(k): batch.tokens[b][where & (batch.branches[b] == k)].tolist()
            for k in np.unique(batch.branches[b][where])
        }
        assert sorted(by_branch) == list(range(len(by_branch)))
        out[int(key)] = [by_branch[k] for k in range(len(by_branch))]
    return out


def as_lists(group):
    return [ids.tolist() for ids in (group.prompt_ids, *group.response_ids)]


@given(token_examples.groups())
def test_every_group_is_packed_exactly_once(groups):
    found = {}
    for batch in packing.pack(groups, LAYOUT):
        assert batch.tokens.shape == (2, 32)
        for b in range(2):
            row = unpack(batch, b)
            assert not found.keys() & row.keys()
            found |= row
    assert found == {group.key: as_lists(group) for group in groups}


@given(token_examples.groups())
def test_scored_tokens_spell_the_responses(groups):
    by_key = {group.key: group for group in groups}
    for batch in packing.pack(groups, LAYOUT):
        for b, g, k in np.ndindex(2, 4, 3):
            scored = np.flatnonzero(batch.score_slots[b] == g * 3 + k)
            key = int(batch.keys[b, g])
            group = by_key.get(key)
            present = group is not None and k < len(group.response_ids)
            assert len(scored) == batch.lengths[b, g, k]
            assert (batch.roles[b, g, k] != Role.PAD) == present
            if not present:
                assert len(scored) == 0
                assert np.isnan(batch.ratings[b, g, k])
                continue
            response = group.response_ids[k].tolist()
            assert batch.score_targets[b, scored].tolist() == response
            assert batch.ratings[b, g, k] == group.ratings[k]
            assert batch.roles[b, g, k] == group.roles[k]


@given(token_examples.groups())
def test_each_scored_token_is_predicted_by_the_token_before_it(groups):
    """What a predicting position sees must be the prompt and the response so far."""
    by_key = {group.key: group for group in groups}
    for batch in packing.pack(groups, LAYOUT):
        for b in range(2):
            count = int((batch.score_slots[b] < 12).sum())
            so_far = dict.fromkeys(range(12), ())
            for s in range(count):
                slot = int(batch.score_slots[b, s])
                t = int(batch.score_positions[b, s])
                key = int(batch.keys[b, slot // 3])
                expected = by_key[key].prompt_ids.tolist() + list(so_far[slot])
                assert visible(batch, b, t) == expected
                assert batch.positions[b, t] == len(expected) - 1
                so_far[slot] += (int(batch.score_targets[b, s]),)


def visible(batch, b, t):
    """Tokens that position `t` attends to, by the rule in `PackedBatch`."""
    return [
        int(batch.tokens[b, s])
        for s in range(t + 1)
        if batch.segments[b, s] == batch.segments[b, t]
        and batch.branches[b, s] in (0, batch.branches[b, t])
    ]


@given(token_examples.groups())
def test_scored_tokens_come_first_and_padding_is_blank(groups):
    for batch in packing.pack(groups, LAYOUT):
        for b in range(2):
            real = batch.score_slots[b] < 12
            count = int(real.sum())
            assert real[:count].all()
            assert count == batch.lengths[b].sum()
            assert not batch.score_positions[b, count:].any()
            assert not batch.score_targets[b, count:].any()
            blank = batch.segments[b] == 0
            used = int((~blank).sum())
            assert blank[used:].all()
            for name in ('tokens', 'positions', 'branches'):
                assert not getattr(batch, name)[b, used:].any()
            assert (batch.score_positions[b, :count] < used).all()


def test_one_group_by_hand():
    group = token_examples.token_group(7, [5, 6], [[1, 2], [3]])
    (batch,) = packing.pack([group], Layout(1, 8, 1, 3))
    assert batch.tokens.tolist() == [[5, 6, 1, 2, 3, 0, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 2, 0, 0, 0]]
    assert batch.segments.tolist() == [[1, 1, 1, 1, 1, 0, 0, 0]]
    assert batch.branches.tolist() == [[0, 0, 1, 1, 2, 0, 0, 0]]
    assert batch.score_positions.tolist() == [[1, 2, 1, 0, 0, 0, 0, 0]]
    assert batch.score_targets.tolist() == [[1, 2, 3, 0, 0, 0, 0, 0]]
    assert batch.score_slots.tolist() == [[0, 0, 1, 3, 3, 3, 3, 3]]
    assert batch.lengths.tolist() == [[[2, 1, 0]]]
    assert batch.roles.tolist() == [[[Role.CHOSEN, Role.REJECTED, Role.PAD]]]
    assert batch.ratings[0, 0, :2].tolist() == [7.0, 6.5]
    assert batch.keys.tolist() == [[7]]
    assert batch.ref_logps is None


@pytest.mark.parametrize('seed', range(3))
def test_agrees_with_plain_loops(seed):
    bodies = tiny.random_groups(seed, 5)
    groups = [token_examples.token_group(i, p, r) for i, (p, r) in enumerate(bodies)]
    layout = Layout(rows=8, row_length=64, groups_per_row=3, responses=3)
    rows = packing.plan([group.num_tokens for group in groups], layout)
    (batch,) = packing.pack(groups, layout)
    expected = tiny.pack_by_hand([[bodies[i] for i in row] for row in rows], 64, 3, 3)
    for field in dataclasses.fields(expected):
        if field.name not in ('keys', 'ratings', 'ref_logps'):
            got, want = getattr(batch, field.name), getattr(expected, field.name)
            np.testing.assert_array_equal(got[: len(rows)], want, err_msg=field.name)
            assert got.dtype == want.dtype, field.name


@given(st.lists(st.integers(1, 30), max_size=20), st.integers(1, 5))
def test_plan_fills_rows_within_their_limits(lengths, groups_per_row):
    layout = Layout(2, 30, groups_per_row, 1)
    rows = packing.plan(lengths, layout)
    assert sorted(itertools.chain(*rows)) == list(range(len(lengths)))
    for row in rows:
        assert 1 <= len(row) <= groups_per_row
        assert sum(lengths[i] for i in row) <= 30
    assert rows == packing.plan(lengths, layout)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20))
def test_plan_opens_no_row_that_another_could_take(lengths):
    """Best fit leaves at most one row half empty, so uses less than twice the least."""
    rows = packing.plan(lengths, Layout(2, 30, 20, 1))
    fill = sorted(sum(lengths[i] for i in row) for row in rows)
    assert len(fill) < 2 or fill[0] + fill[1] > 30


def test_plan_takes_the_fullest_row_that_fits():
    lengths = [6, 7, 3, 4]  # 7 | 6, then 4 beside 6 and 3 beside 7
    assert packing.plan(lengths, Layout(1, 10, 4, 1)) == [[1, 2], [0, 3]]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(1, 4))
def test_cells_are_those_of_the_batches(lengths, rows):
    layout = Layout(rows, 32, 4, 1)
    groups = [token_examples.token_group(i, [1] * n, []) for i, n in enumerate(lengths)]
    batches = packing.pack(groups, layout)
    assert packing.cells(lengths, layout) == sum(b.tokens.size for b in batches)


def test_the_cheapest_layout_holds_the_longest_and_ties_go_to_short_rows():
    short, middle, long = (Layout(1, n, 4, 1) for n in (16, 32, 48))
    every = (short, middle, long)
    assert packing.cheapest([16, 16], every) is short  # 32 cells, as in one row of 32
    assert packing.cheapest([17, 9], every) is middle
    assert packing.cheapest([30, 18], every) is long
    assert packing.cheapest([], every) is short
    with pytest.raises(ConfigError, match='49 tokens and rows hold 48'):
        packing.plan([49], packing.cheapest([49], every))


def test_rows_are_spread_over_micro_batches():
    groups = [token_examples.token_group(i, [1] * 20, [[2]]) for i in range(5)]
    batches = packing.pack(groups, LAYOUT)
    keys = [batch.keys[:, 0].tolist() for batch in batches]
    assert keys == [[0, 1], [2, 3], [4, -1]]
    assert not batches[-1].roles[1].any()
    assert (batches[-1].score_slots[1] == 12).all()


@given(token_examples.groups(), st.sampled_from([1, 2, 4]))
def test_processes_together_make_the_batch_of_one(groups, processes):
    layout = dataclasses.replace(LAYOUT, rows=4)
    share = 4 // processes
    parts = [
        packing.pack(groups, layout, row_slice=slice(share * p, share * (p + 1)))
        for p in range(processes)
    ]
    for i, whole in enumerate(packing.pack(groups, layout)):
        for field in FIELDS:
            pieces = [getattr(part[i], field) for part in parts]
            assert all(len(piece) == share for piece in pieces)
            np.testing.assert_array_equal(np.concatenate(pieces), getattr(whole, field))


def test_reference_log_probs_are_found_by_key():
    groups = [token_examples.token_group(key, [1, 2], [[3], [4]]) for key in (4, 0, 2)]
    cache = np.arange(15, dtype=np.float32).reshape(5, 3)
    for batch in packing.pack(groups, LAYOUT, ref_logps=cache):
        for b, g in np.ndindex(batch.keys.shape):
            key = batch.keys[b, g]
            expected = cache[key] if key >= 0 else np.zeros(3)
            np.testing.assert_array_equal(batch.ref_logps[b, g], expected)
        assert batch.ref_logps.dtype == np.float32


def test_too_long_a_group_names_the_remedy():
    group = token_examples.token_group(0, [1] * 120, [[2] * 20])
    with pytest.raises(ConfigError, match=r'140 tokens and rows hold 32.*row_length.*256'):
        packing.pack([group], LAYOUT)


def test_a_group_as_long_as_the_row_fits():
    (batch,) = packing.pack([token_examples.token_group(0, [1] * 20, [[2] * 12])], LAYOUT)
    assert packing.real_tokens(batch) == 32


def test_too_many_responses_are_refused():
    group = token_examples.token_group(3, [1], [[2]] * 4)
    with pytest.raises(ValueError, match='group 3 has 4 responses; the table has 3'):
        packing.pack([group], LAYOUT)


@pytest.mark.parametrize(('longest', 'length'), [(1, 128), (128, 128), (129, 256)])
def test_automatic_row_length(longest, length):
    assert packing.automatic_row_length(longest) == length


def test_no_groups_need_no_batch():
    assert packing.pack([], LAYOUT) == []
