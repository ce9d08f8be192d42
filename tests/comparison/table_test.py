"""The same numbers as text, CSV and HTML."""

import csv
import io
import math
from html.parser import HTMLParser

import pytest

from epa_jax.comparison import table
from epa_jax.comparison.runs import grouped, read_run
from epa_jax.evals.bootstrap import Interval
from tests.comparison import folders


@pytest.fixture
def groups(tmp_path):
    runs = [
        folders.write(tmp_path / 'a', accuracy=0.7),
        folders.write(tmp_path / 'b', accuracy=0.8, seed=1),
        folders.write(tmp_path / 'c', accuracy=0.6, loss='0.5*dpo + <b>', finished=True),
    ]
    return grouped([read_run(run) for run in runs])


def test_text(groups):
    lines = table.text(groups)
    assert lines[0] == '[1] dpo (2 seeds)'
    (row,) = [line for line in lines if line.startswith('rewards/accuracies')]
    assert row.split()[1:] == ['0.75', '±', '0.64', '0.6', '±', '0.096']
    assert len({len(line) for line in lines[3:]}) == 1


def test_csv(groups):
    rows = list(csv.DictReader(io.StringIO(table.as_csv(groups))))
    (row,) = [
        r for r in rows if r['runs'] == '2' and r['measurement'] == 'rewards/accuracies'
    ]
    assert float(row['value']) == pytest.approx(0.75)
    assert float(row['low']) < 0.2


def test_html_is_escaped(groups):
    text = table.as_html(groups)
    assert '&lt;b&gt;' in text
    assert '<b>' not in text
    seen = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: seen.append(tag)
    parser.feed(text)
    assert seen.count('tr') == 1 + len(table.rows(groups)[0])
    assert seen.count('td') == 2 * (seen.count('tr') - 1)


def test_cells():
    assert table.cell(None) == '-'
    assert table.cell(Interval(math.nan, math.nan, math.nan)) == '-'
    assert table.cell(Interval(0.123456, math.nan, math.nan)) == '0.1235'
    assert table.cell(Interval(0.5, 0.4, 0.62)) == '0.5 ± 0.11'
