"""The notebooks run from a clean kernel, and show what they would show today."""

import base64
import io
import os
import re

import matplotlib.image
import nbformat
import numpy as np
import pytest
from nbclient.exceptions import CellExecutionError

from experiments.notebooks import execute

NOTEBOOKS = execute.notebooks()
EXACT = '1_'  # its numbers are sums in float64, the same everywhere but for rounding
NUMBER = re.compile(r'-?\d+\.?\d*(?:e[+-]?\d+)?')
LARGEST = 400_000  # bytes
EVERY = pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == 'code']


def figures(cell):
    """Pixels of what a cell draws."""
    pngs = [o.data['image/png'] for o in cell.outputs if 'image/png' in o.get('data', {})]
    return [matplotlib.image.imread(io.BytesIO(base64.b64decode(png))) for png in pngs]


def printed(cell):
    return ''.join(output.text for output in cell.outputs if 'text' in output)


def numbers(cell):
    return [float(text) for text in NUMBER.findall(printed(cell))]


def kernel_env():
    """As at a user's: not the eight devices and the hurried compiler of the tests."""
    return {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}


def test_there_are_three():
    assert [path.name[:2] for path in NOTEBOOKS] == ['1_', '2_', '3_']


@pytest.mark.exhaustive
@EVERY
def test_it_runs_and_shows_what_is_committed(path):
    """What it claims it asserts itself."""
    committed = nbformat.read(path, as_version=4)
    found = execute.execute(path, kernel_env())
    assert [cell.source for cell in found.cells] == [c.source for c in committed.cells]
    drawn = 0
    for old, new in zip(code_cells(committed), code_cells(found), strict=True):
        assert [o.output_type for o in new.outputs] == [o.output_type for o in old.outputs]
        for before, after in zip(figures(old), figures(new), strict=True):
            # widths of labels follow their digits, and crop the margins
            np.testing.assert_allclose(after.shape, before.shape, rtol=0.05)
            assert after.std() > 0.05
            drawn += 1
        if path.name.startswith(EXACT):
            assert NUMBER.sub('#', printed(new)) == NUMBER.sub('#', printed(old))
            np.testing.assert_allclose(numbers(new), numbers(old), rtol=0.02, atol=0.02)
    assert drawn >= 3


@EVERY
def test_the_committed_one_is_whole_and_tells_nothing_of_a_machine(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < LARGEST
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(not cell.metadata for cell in notebook.cells)
    assert set(notebook.metadata) == {'kernelspec', 'language_info'}
    assert dict(notebook.metadata.language_info) == {'name': 'python'}
    assert sum(len(figures(cell)) for cell in cells) >= 3
    outputs = [output for cell in cells for output in cell.outputs]
    assert {o.name for o in outputs if o.output_type == 'stream'} == {'stdout'}
    text = path.read_text('utf-8')
    assert not re.search(r'/(?:root|home|Users|tmp|var|work)/', text)
    assert not re.search(r'\d (?:s|seconds|ms)\b', ''.join(map(printed, cells)))


@EVERY
def test_its_links_lead_somewhere(path):
    for cell in nbformat.read(path, as_version=4).cells:
        for link in re.findall(r'\]\(([^)]+)\)', cell.source):
            if cell.cell_type == 'markdown' and not link.startswith('https://'):
                assert (path.parent / link).exists(), link


def write(folder, *sources):
    path = folder / 'x.ipynb'
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def test_outputs_are_kept_and_cells_counted(tmp_path):
    path = write(tmp_path, 'x = 2', "print('a')\nprint('b')", 'x * 21')
    execute.main([str(path)])
    cells = nbformat.read(path, as_version=4).cells
    assert [cell.execution_count for cell in cells] == [1, 2, 3]
    assert cells[1].outputs[0].text == 'a\nb\n'
    assert cells[2].outputs[0].data['text/plain'] == '42'
    assert cells[2].outputs[0].execution_count == 3


@pytest.mark.parametrize(
    ('source', 'message'),
    [
        ('assert 1 > 2', 'AssertionError'),
        ("import warnings\nwarnings.warn('old', DeprecationWarning)", 'DeprecationWarning'),
    ],
)
def test_a_failed_claim_and_a_warning_stop_it(tmp_path, source, message):
    path = write(tmp_path, source)
    before = path.read_bytes()
    with pytest.raises(CellExecutionError, match=message):
        execute.main([str(path)])
    assert path.read_bytes() == before
