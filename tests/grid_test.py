"""Grids of settings and the names of their runs."""

import math

import hypothesis
import pytest
from hypothesis import strategies as st

from epa_jax.config import ConfigError
from epa_jax.grid import expand, names_of, parse_axis

AXES = {
    'loss.beta': st.floats(0.01, 1, allow_nan=False),
    'seed': st.integers(0, 9),
    'loss.name': st.sampled_from(['dpo', 'epa', '0.5*dpo + 0.5*bco']),
    'data.n_weak': st.integers(0, 8),
}


@hypothesis.given(
    st.fixed_dictionaries(
        {},
        optional={
            key: st.lists(value, min_size=1, max_size=3, unique=True)
            for key, value in AXES.items()
        },
    )
)
def test_all_combinations_once_and_named_apart(grid):
    found = expand(grid)
    assert len(found) == math.prod(len(values) for values in grid.values())
    for settings in found:
        assert all(settings[key] in grid[key] for key in grid)
    names = names_of(found)
    assert len(set(names)) == len(found)
    assert all('/' not in name and ' ' not in name for name in names)


def test_the_last_key_varies_fastest_and_only_what_varies_is_in_names():
    grid = {'loss.name': ['dpo'], 'optim.lr': [1e-4, 3e-4], 'seed': [0, 1]}
    assert names_of(expand(grid)) == [
        'lr=0.0001,seed=0',
        'lr=0.0001,seed=1',
        'lr=0.0003,seed=0',
        'lr=0.0003,seed=1',
    ]
    assert names_of(expand({'seed': [3]})) == ['run']


def test_several_grids_one_after_the_other():
    grids = [
        {'loss.name': ['dpo']},
        {'loss.name': ['epa'], 'data.n_weak': [2, 4], 'sft.weight': [0.5]},
    ]
    found = expand(grids)
    assert found[0] == {'loss.name': 'dpo'}
    assert found[2] == {'loss.name': 'epa', 'data.n_weak': 4, 'sft.weight': 0.5}
    assert names_of(found) == [
        'name=dpo',
        'name=epa,n_weak=2,weight=0.5',
        'name=epa,n_weak=4,weight=0.5',
    ]


def test_keys_of_one_last_part_are_named_in_full():
    grid = {'sft.weight': [0.1, 0.2], 'pretrain.weight': [0.1, 0.2]}
    assert names_of(expand(grid))[1] == 'sft.weight=0.1,pretrain.weight=0.2'


@pytest.mark.parametrize(
    ('grid', 'message'),
    [
        ({'loss.bta': [1]}, 'loss.bta: no such key; did you mean loss.beta'),
        ({'loss': [1]}, 'loss: a group of keys'),
        ({'seed': []}, 'seed has no values'),
        ({'loss.name': 'dpo'}, "loss.name='dpo': expected a list"),
        ({'seed': 3}, 'seed=3: expected a list'),
        ({'workdir': ['a']}, 'workdir is the folder of the sweep'),
        ([{'seed': [0, 1]}, {'seed': [1]}], r'{"seed": 1} is there 2 times'),
    ],
)
def test_what_is_no_grid_is_refused(grid, message):
    with pytest.raises(ConfigError, match=message):
        expand(grid)


def test_names_that_cannot_be_folders_are_refused():
    grid = {'data.train': ['a/b.jsonl', 'a b.jsonl'], 'seed': [0]}
    assert names_of(expand({'data.train': ['a/b.jsonl', 'c']}))[0] == 'train=a_b.jsonl'
    with pytest.raises(ConfigError, match='the name of two runs'):
        names_of(expand(grid | {'data.train': ['a/b', 'a_b']}))
    with pytest.raises(ConfigError, match='too long'):
        names_of(expand({'data.train': ['x' * 200, 'y']}))


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('loss.beta=0.05,1', ('loss.beta', [0.05, 1.0])),
        ('seed=0,1', ('seed', [0, 1])),
        ('export=true,False', ('export', [True, False])),
        ('loss.name=dpo', ('loss.name', ['dpo'])),
    ],
)
def test_axes_of_the_command_line(text, expected):
    found = parse_axis(text)
    assert found == expected
    assert [type(v) for v in found[1]] == [type(v) for v in expected[1]]


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('seed', '--grid=seed: expected KEY=VALUE'),
        ('sed=1', 'sed: no such key; did you mean seed'),
        ('seed=0,x', 'seed=x: expected int'),
        ('export=maybe', 'export=maybe: expected bool'),
    ],
)
def test_bad_axes_are_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_axis(text)
