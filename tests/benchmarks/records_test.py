"""Lines, spreads and tables of measurements."""

import io
import json

import pytest

from benchmarks import records


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_recorder_writes_what_read_reads(tmp_path):
    path = tmp_path / 'lines.jsonl'
    recorder = records.Recorder(path)
    recorder.write('header', contestant='ours')
    recorder.start()
    recorder.step(compiled=True, loss=0.5)
    recorder.step(compiled=False, loss=0.25)
    recorder.end(reference_seconds=1.0)
    found = records.read(path)
    assert [line['kind'] for line in found] == ['header', 'step', 'step', 'end']
    assert [line['step'] for line in found[1:3]] == [1, 2]
    assert records.steps(found, compiled=False) == [found[2]['seconds']]
    assert records.steps(found, compiled=True) == [found[1]['seconds']]
    assert all(line['peak_bytes'] > 2**20 for line in found[1:])


def test_a_process_that_was_cut_short_is_refused(tmp_path):
    path = tmp_path / 'lines.jsonl'
    recorder = records.Recorder(path)
    recorder.write('header')
    recorder.step(compiled=True)
    with pytest.raises(records.RecordsError, match='cut short'):
        records.read(path)


def test_spread_is_median_and_range():
    assert records.spread([4.0, 1.0, 2.0]) == records.Spread(2.0, 1.0, 4.0, 3)
    with pytest.raises(records.RecordsError, match='without compilation'):
        records.spread([])


def test_rows_measured_anew_replace_those_of_their_setting(tmp_path):
    path = tmp_path / 'table.csv'
    records.write_csv(path, [{'case': 'a', 'x': 1.234567}, {'case': 'b', 'x': 2}])
    rows = records.merged(path, [{'case': 'a', 'x': 3}, {'case': 'c', 'x': 4}], ('case',))
    assert [(row['case'], float(row['x'])) for row in rows] == [
        ('b', 2),
        ('a', 3),
        ('c', 4),
    ]
    assert path.read_text() == 'case,x\na,1.2346\nb,2\n'
    assert records.merged(tmp_path / 'none.csv', rows, ('case',)) == rows


def test_rows_without_a_column_hold_its_first_value(tmp_path):
    path = tmp_path / 'table.csv'
    records.write_csv(path, [{'axis': 'a', 'x': 1}, {'axis': 'b', 'x': 2}])
    new = [{'shape': 'small', 'axis': 'a', 'x': 3}, {'shape': '1B', 'axis': 'b', 'x': 4}]
    rows = records.merged(path, new, ('shape', 'axis'), {'shape': 'small'})
    assert [(r['shape'], r['axis'], int(r['x'])) for r in rows] == [
        ('small', 'b', 2),
        ('small', 'a', 3),
        ('1B', 'b', 4),
    ]
    records.write_csv(path, rows)
    assert records.merged(path, new, ('shape', 'axis'))[0]['x'] == '2'


def test_a_table_is_aligned():
    shown = records.show([{'name': 'a', 'value': 1.0}, {'name': 'long', 'value': 20.5}])
    assert io.StringIO(shown).read().splitlines() == [
        'name  value',
        '   a      1',
        'long   20.5',
    ]
