"""The final table: complete within 80 columns, and the same numbers as JSON."""

import json
import math

import numpy as np
import pytest

from epa_jax.evals.linearity import Linearity
from epa_jax.world import language, table
from epa_jax.world.measure import Estimate, Outcome

# of two prompts: the root of the mean is not the mean of the roots
LINE = Linearity(pearson=np.array([0.9, 0.7]), slope1_error=np.array([0.04, 1.0]))


def outcome(name='EPA 1:1:2', line=LINE, kl=(1.234, 0.056), reward=(0.987, 0.04)):
    return Outcome(
        name, 0.6789, 1.2345, line, Estimate(*kl), Estimate(*reward), np.zeros((2, 3))
    )


UNVARIED = outcome('SFT', Linearity(np.full(2, np.nan), np.array([1.0, 4.0])))


def test_a_row_has_every_number():
    *_, row = table.lines([outcome()])
    numbers = '0.679 1.234 0.800 0.520 0.600 1.23 ± 0.06 0.99 ± 0.04'
    assert row.split() == ['EPA', '1:1:2', *numbers.split()]


def test_headings_stand_over_their_columns():
    first, second, _, row = table.lines([outcome()])
    assert second.split() == ['policy', 'accuracy', 'error', 'root', 'reference', 'reward']
    for heading, number in {
        'held-out': '0.679',
        'margin': '1.234',
        'Pearson': '0.800',
        'slope-1': '0.520',
        'its': '0.600',
        'KL to the': '0.06',
        'true': '0.04',
    }.items():
        assert first.index(heading) + len(heading) == row.index(number) + len(number)


def test_the_table_fits_80_columns():
    lowest = outcome(reward=(language.LOWEST_REWARD, 0.25), kl=(10.0, 1.5))
    assert max(len(line.rstrip()) for line in table.lines([UNVARIED, lowest])) <= 80


def test_columns_grow_with_their_numbers():
    line = Linearity(np.array([-0.9, -0.7]), np.array([120.0, 125.0]))  # far off
    wide = outcome(line=line, kl=(123.4, 11.5), reward=(-4.0, 1.25))
    found = table.lines([outcome(), wide])
    numbers = '0.679 1.234 -0.800 122.500 11.067 123.40 ± 11.50 -4.00 ± 1.25'
    assert found[-1].split() == ['EPA', '1:1:2', *numbers.split()]
    assert len(set(map(len, found))) == 1


def test_what_is_not_known_is_a_dash_and_null():
    *_, row = table.lines([UNVARIED])
    assert row.split()[:4] == ['SFT', '0.679', '1.234', '-']
    assert table.as_record(UNVARIED)['pearson'] is None


def test_a_record_holds_the_same_numbers_unrounded():
    record = table.as_record(outcome())
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record == {
        'policy': 'EPA 1:1:2',
        'accuracy': 0.6789,
        'margin': 1.2345,
        'pearson': pytest.approx(0.8),
        'slope1_error': pytest.approx(0.52),
        'slope1_root': pytest.approx(0.6),
        'kl': 1.234,
        'kl_standard_error': 0.056,
        'reward': 0.987,
        'reward_standard_error': 0.04,
    }


def test_the_true_reward_agrees_with_a_label_a_tie_with_half_of_one():
    assert table.agreement(np.array([0.3, 2.0, 0.0, -0.1])) == pytest.approx(2.5 / 4)


def test_the_notes_tell_how_much_was_measured():
    gaps = np.array([1.0] * 30 + [-1.0] * 6)
    accuracy, line, fresh = table.notes(gaps, own=7, off_topic=5, fresh=9, beta=0.25)
    assert '36 held-out pairs' in accuracy
    assert 'accuracy 0.833' in accuracy
    deviation = math.sqrt(0.5 * 0.5 / 36)
    assert f'at most {deviation:.3f}' in accuracy
    assert 'r_theta = 0.25 log' in line
    assert '7 samples of the reference and 5 off-topic' in line
    assert '9 fresh samples' in fresh
