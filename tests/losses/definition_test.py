import math

import jax
import numpy as np
import pytest

from epa_jax.losses import LOSSES, make_loss
from epa_jax.losses.definition import ANY, NOT_NEGATIVE, POSITIVE, Choice, Range
from tests.losses.brute_force import random_table
from tests.losses.measure import compiled, widen


@pytest.mark.parametrize(
    ('values', 'inside', 'outside'),
    [
        (Range(0, 1), [0, 0.5, 1, np.float64(0.5)], [-0.1, 1.1]),
        (Range(0, 1, open_low=True), [1e-9, 1.0], [0, 0.0, -1]),
        (Range(0, 1, open_high=True), [0, 0.999], [1, 1.0]),
        (ANY, [-1e30, 0, 7], [math.nan, math.inf, -math.inf]),
        (POSITIVE, [1e-30, 3], [0, -1, math.nan]),
        (NOT_NEGATIVE, [0, 3.5], [-1e-9]),
        (Range(0, 1), [], [True, False, '0.5', None, [0.5]]),
        (Choice(('sum', 'mean')), ['sum', 'mean'], ['max', 1, None]),
        (Choice((True, False)), [True, False], ['True', None, 2]),
    ],
)
def test_what_is_inside_and_outside(values, inside, outside):
    assert all(value in values for value in inside)
    assert not any(value in values for value in outside)


@pytest.mark.parametrize(
    ('values', 'text'),
    [
        (Range(0, 0.5), 'from 0 to 0.5'),
        (Range(0, 0.5, open_low=True), 'above 0 to 0.5'),
        (Range(0, 1, open_high=True), 'from 0 below 1'),
        (POSITIVE, 'above 0 to inf'),
        (Choice(('sum', 'mean')), 'sum or mean'),
    ],
)
def test_ranges_in_words(values, text):
    assert str(values) == text


def test_defaults_are_those_of_the_function():
    assert LOSSES['simpo'].defaults() == {'beta': 2.0, 'gamma': 0.5, 'pairs': 'best_rest'}
    assert LOSSES['sft'].defaults() == {}


@pytest.mark.parametrize(
    ('name', 'values', 'changed'),
    [
        ('dpo', {}, {}),
        ('dpo', {'pairs': 'all'}, {'ratings': 'ranks'}),
        ('rpo_sq', {'pairs': 'all'}, {}),
        ('ipo', {'tokens': 'mean'}, {'differences_only': False, 'per_token': True}),
        (
            'mpo',
            {'against': 'reference'},
            {'needs_reference': True, 'differences_only': True},
        ),
        (
            'mpo',
            {'against': 'reference', 'tokens': 'mean'},
            {'needs_reference': True, 'per_token': True},
        ),
        ('nca', {'rating_temperature': 0.0}, {'ratings': 'unused'}),
        (
            'kto',
            {'baseline': 'zero'},
            {'min_weak': 0, 'min_negatives': 0, 'couples_prompts': False},
        ),
        ('bco', {'shift': 'batch'}, {'carry': None}),
        ('bco', {'shift': 'none'}, {'carry': None, 'couples_prompts': False}),
    ],
)
def test_needs_follow_the_values(name, values, changed):
    needs = LOSSES[name].with_values(values)
    before = vars(LOSSES[name])
    found = {k: v for k, v in vars(needs).items() if v is not before[k]}
    assert found == changed


@pytest.mark.parametrize(
    ('name', 'values'),
    [(n, {}) for n in sorted(LOSSES)]
    + [('kto', {'baseline': 'zero'}), ('bco', {'shift': 'none'}), ('bco + dpo', {})],
)
def test_couples_prompts_says_whether_the_others_matter(name, values):
    table, other = widen(random_table(0)), widen(random_table(1))
    mixed = jax.tree.map(lambda a, b: np.concatenate([a[:3], b[3:]]), table, other)
    found = [compiled(name, tuple(values.items()))(t)[0][:3] for t in (table, mixed)]
    same = np.allclose(*found, rtol=1e-9, atol=1e-9)
    assert same != make_loss(name, values).needs.couples_prompts


def test_nothing_carried_is_all_zeros():
    (zero,) = make_loss('bco', {}).nothing_carried()
    assert (zero.total, zero.weight) == (0, 0)
    carried = make_loss('dpo + bco', {}).nothing_carried()
    assert carried[0] is None
    assert (carried[1].total, carried[1].weight) == (0, 0)
