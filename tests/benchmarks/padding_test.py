"""The counts of padding, by hand and through the command."""

import csv

import pytest

from benchmarks import padding
from epa_jax.data.packing import Layout
from tests import small_run


def test_padding_by_hand():
    # 60 + 40 fill a row of 100; 30 takes one of 40 by itself
    layouts = [Layout(1, length, 2, 1) for length in (40, 100)]
    assert padding.padding([[60, 40], [30]], layouts) == pytest.approx(1 - 130 / 140)
    assert padding.padding([[60, 40], [30]], layouts[1:]) == pytest.approx(1 - 130 / 200)


def test_more_lengths_never_leave_more_padding():
    steps = [[190] * 4, [250] * 4, [300, 20, 20, 20]] * 3
    found = padding.measured(steps, 1)
    assert [way for way, _, _ in found] == ['longest', '1', '2', '3']
    assert found[0][1] == [384]
    shares = [share for _, _, share in found]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[-1]


def test_the_command_writes_a_line_for_every_choice(tmp_path):
    small_run.write(tmp_path)
    out = tmp_path / 'padding.csv'
    where = ['--model', str(tmp_path / 'model'), '--data', str(tmp_path / 'pairs.jsonl')]
    for _ in range(2):  # the second replaces the first
        padding.main(
            [*where, '--name', 'small', '--of', '20', '--rows', '1', '4', '--out', str(out)]
        )
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [(row['rows'], row['lengths']) for row in rows] == [
        (rows, way) for rows in ('1', '4') for way in ('longest', '1', '2', '3')
    ]
    assert all(0 < float(row['padding']) < 1 for row in rows)
