"""Which negatives are drawn: purity, exclusions, and that all are equally likely."""

import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epa_jax.data import negatives
from epa_jax.data.negatives import NegativeRule, NegativesError, make_group
from epa_jax.types import Role
from tests.data.token_examples import NAN, example, random_examples

EXAMPLES = random_examples(12)


def rule(n_strong=1, n_weak=2, source='any', seed=0):
    return NegativeRule(seed, n_strong, n_weak, source)


def content(group):
    return [group.key, group.roles.tolist(), *(r.tolist() for r in group.response_ids)]


def owners(ids, examples):
    """Indices of the examples that have this response."""
    return {
        i
        for i, e in enumerate(examples)
        if any(np.array_equal(ids, r) for r in e.response_ids)
    }


@given(
    st.integers(0, 11),
    st.integers(0, 5),
    st.integers(0, 2**32 - 1),
    st.integers(0, 3),
    st.integers(0, 5),
    st.sampled_from(sorted(negatives.SOURCES)),
)
def test_groups_keep_the_rules(index, draw, seed, n_strong, n_weak, source):
    own = EXAMPLES[index]
    which = rule(n_strong, n_weak, source, seed)
    group = make_group(EXAMPLES, index, draw, which)
    roles = group.roles.tolist()
    strong = min(n_strong, len(own.response_ids) - 1)
    assert roles == [Role.CHOSEN] + [Role.REJECTED] * strong + [Role.WEAK] * n_weak
    assert which.responses >= len(roles)
    assert group.key == draw * 12 + index
    np.testing.assert_array_equal(group.prompt_ids, own.prompt_ids)
    np.testing.assert_array_equal(group.response_ids[0], own.response_ids[0])
    for ids in group.response_ids[1 : 1 + strong]:
        assert any(np.array_equal(ids, r) for r in own.response_ids[1:])
    weak = group.response_ids[1 + strong :]
    texts = [ids.tobytes() for ids in group.response_ids]
    assert len(set(texts[1 + strong :]) - set(texts[: 1 + strong])) == n_weak
    for ids in weak:
        sources = owners(ids, EXAMPLES) - {index}
        assert sources
        role_of = {
            int(EXAMPLES[i].roles[k])
            for i in sources
            for k, r in enumerate(EXAMPLES[i].response_ids)
            if np.array_equal(r, ids)
        }
        assert role_of & set(negatives.SOURCES[source])


def test_a_group_depends_on_seed_draw_and_index_alone():
    which = rule(2, 3)
    first = [content(make_group(EXAMPLES, i, 1, which)) for i in range(12)]
    again = [content(make_group(EXAMPLES, i, 1, which)) for i in reversed(range(12))]
    assert first == again[::-1]
    other_draw = [content(make_group(EXAMPLES, i, 2, which))[1:] for i in range(12)]
    other_seed = [
        content(make_group(EXAMPLES, i, 1, rule(2, 3, seed=1))) for i in range(12)
    ]
    assert other_draw != [c[1:] for c in first]
    assert other_seed != first


def test_global_random_state_is_neither_used_nor_changed():
    np.random.seed(3)  # noqa: NPY002
    before = content(make_group(EXAMPLES, 0, 0, rule(2, 3)))
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    np.random.seed(4)  # noqa: NPY002
    assert content(make_group(EXAMPLES, 0, 0, rule(2, 3))) == before
    np.random.seed(3)  # noqa: NPY002
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002


def test_weak_negatives_come_from_different_prompts_and_never_a_duplicate():
    """Prompts 0 and 1 are one, 2 and 3 another: exactly one of 2, 3 and then 4 remain."""
    keys = [b'a', b'a', b'b', b'b', b'c']
    data = [
        example([9], [[10 + i], [20 + i]], prompt_key=key) for i, key in enumerate(keys)
    ]
    for draw in range(30):
        group = make_group(data, 0, draw, rule(1, 2))
        weak = [int(ids[0]) % 10 for ids in group.response_ids[2:]]
        assert sorted(keys[i] for i in weak) == [b'b', b'c']


def test_a_weak_response_never_repeats_one_of_the_group():
    """All others answer as this prompt's chosen or rejected response, save one."""
    data = [example([i], [[1], [2]]) for i in range(40)] + [example([99], [[3], [1]])]
    for draw in range(20):
        group = make_group(data, 0, draw, rule(1, 1))
        assert [r.tolist() for r in group.response_ids] == [[1], [2], [3]]


@pytest.mark.parametrize('source', ['chosen', 'rejected'])
def test_the_source_is_kept_when_few_remain(source):
    """So few prompts that trial fails and the list of all candidates is used."""
    data = [example([i], [[1, i], [2, i]]) for i in range(3)]
    data += [example([0], [[5], [6]])] * 500  # duplicates of prompt 0
    group = make_group(data, 0, 0, rule(1, 2, source))
    first = 1 if source == 'chosen' else 2
    assert {tuple(r.tolist()) for r in group.response_ids[2:]} == {(first, 1), (first, 2)}


@pytest.mark.parametrize(
    ('data', 'source'),
    [
        ([example([1], [[1], [2]], prompt_key=b'x')] * 5, 'any'),
        ([example([i], [[1], [2]]) for i in range(5)], 'any'),
        ([example([i], [[i]]) for i in range(5)], 'rejected'),
    ],
    ids=['one prompt', 'the same responses everywhere', 'no rejected response'],
)
def test_too_few_other_prompts_are_an_error(data, source):
    with pytest.raises(NegativesError, match=r'data\.n_weak=1: no response of another'):
        make_group(data, 0, 0, rule(1, 1, source))


def test_as_many_strong_ones_as_there_are():
    data = [example([1], [[1], [2], [3]])]
    group = make_group(data, 0, 0, rule(5, 0))
    assert [r.tolist() for r in group.response_ids] == [[1], [2], [3]]


def test_every_strong_negative_is_drawn_equally_often():
    data = [example([1], [[1], [2], [3], [4]])]
    draws = 600
    drawn = collections.Counter(
        tuple(int(r[0]) for r in make_group(data, 0, d, rule(2, 0)).response_ids[1:])
        for d in range(draws)
    )
    assert set(drawn) == {(2, 3), (2, 4), (3, 4)}
    assert all(abs(n - draws / 3) < 5 * (draws * 2 / 9) ** 0.5 for n in drawn.values())


def test_every_other_prompt_is_drawn_equally_often():
    data = [example([i], [[1, i], [2, i]]) for i in range(5)]
    draws = 1000
    drawn = collections.Counter(
        tuple(make_group(data, 2, d, rule(0, 1)).response_ids[1].tolist())
        for d in range(draws)
    )
    assert set(drawn) == {(role, i) for role in (1, 2) for i in (0, 1, 3, 4)}
    sigma = (draws * (1 / 8) * (7 / 8)) ** 0.5
    assert all(abs(n - draws / 8) < 5 * sigma for n in drawn.values())


@pytest.mark.parametrize(
    ('responses', 'ratings', 'strong'),
    [
        ([[1], [2], [1]], None, [1]),  # identical to the chosen one
        ([[1], [2], [3]], [2.0, 2.0, 1.0], [2]),  # tied with it
        ([[1], [2], [3]], [NAN, NAN, NAN], [1, 2]),  # unknown is no tie
        ([[1], [1], [2]], [2.0, 1.0, 2.0], []),
    ],
)
def test_strong_candidates(responses, ratings, strong):
    assert negatives.strong_candidates(example([1], responses, ratings=ratings)) == strong


def test_the_chosen_response_is_found_wherever_it_stands():
    roles = [Role.REJECTED, Role.CHOSEN, Role.REJECTED]
    data = [example([1], [[1], [2], [3]], roles=roles, ratings=[0.1, 0.9, 0.5])]
    group = make_group(data, 0, 0, rule(2, 0))
    assert [r.tolist() for r in group.response_ids] == [[2], [1], [3]]
    np.testing.assert_allclose(group.ratings, [0.9, 0.1, 0.5], rtol=1e-6)


def test_weak_negatives_have_no_rating():
    data = [example([i], [[1, i], [2, i]], ratings=[2.0, 1.0]) for i in range(4)]
    group = make_group(data, 0, 0, rule(1, 2))
    np.testing.assert_array_equal(group.ratings, np.float32([2.0, 1.0, NAN, NAN]))
    assert group.ratings.dtype == np.float32
