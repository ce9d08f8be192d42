"""Runs the notebooks from a clean kernel and keeps what they print and draw.

Command: python -m experiments.notebooks.execute [NOTEBOOK ...]     (make notebooks)
"""

import argparse
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from traitlets.config import Config

FOLDER = Path(__file__).resolve().parent
STRICT = """
import logging
import warnings

warnings.simplefilter('error')
warnings.filterwarnings('ignore', module='ipykernel')  # the kernel's own, at its end
logging.getLogger('epa_jax.step_times').setLevel('ERROR')  # the pace of this machine
"""
TIMEOUT = 900  # seconds a cell
# of a kernel: nothing fetched, nothing but the program's own words in the outputs
QUIET = {'HF_HUB_OFFLINE': '1', 'TOKENIZERS_PARALLELISM': 'false', 'JAX_PLATFORMS': 'cpu'}


def notebooks() -> list[Path]:
    """Every notebook of this folder, in order."""
    return sorted(FOLDER.glob('*.ipynb'))


def execute(path: Path, env: Mapping[str, str] | None = None) -> NotebookNode:
    """Runs a notebook in an empty folder, on CPUs; a warning is an error.

    Args:
      path: of the notebook, which is not changed.
      env: environment of the kernel; that of this process unless given.

    Returns:
      The notebook with its new outputs, and with nothing that tells one machine or run
      from another.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell failed; shows its traceback.
    """
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(STRICT))
    with tempfile.TemporaryDirectory() as folder:
        # sockets of this user instead of ports
        sockets = {'transport': 'ipc', 'connection_file': f'{folder}/kernel.json'}
        client = NotebookClient(
            notebook,
            config=Config({'ConnectionFileMixin': sockets}),
            timeout=TIMEOUT,
            kernel_name='python3',
            record_timing=False,
            coalesce_streams=True,
            resources={'metadata': {'path': folder}},
        )
        client.execute(env={**(os.environ if env is None else env), **QUIET})
    del notebook.cells[0]
    return clean(notebook)


def clean(notebook: NotebookNode) -> NotebookNode:
    """The notebook with the least metadata, and cells counted from 1."""
    kernel = {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'}
    notebook.metadata = nbformat.from_dict(
        {'kernelspec': kernel, 'language_info': {'name': 'python'}}
    )
    code = [cell for cell in notebook.cells if cell.cell_type == 'code']
    for number, cell in enumerate(code, start=1):
        cell.execution_count = number
        for output in cell.outputs:
            if 'execution_count' in output:
                output.execution_count = number
            if 'metadata' in output:
                output.metadata = nbformat.from_dict({})
    for number, cell in enumerate(notebook.cells, start=1):
        cell.id = f'cell-{number}'
        cell.metadata = nbformat.from_dict({})
    return notebook


def main(argv: Sequence[str] | None = None) -> None:
    """Writes every notebook, or those named, in place."""
    parser = argparse.ArgumentParser(
        prog='python -m experiments.notebooks.execute', description=__doc__.split('\n')[0]
    )
    parser.add_argument('notebooks', nargs='*', type=Path, help='all unless named')
    for path in parser.parse_args(argv).notebooks or notebooks():
        began = time.perf_counter()
        nbformat.write(execute(path), path)
        print(f'{path.name}: {time.perf_counter() - began:.0f} s', flush=True)


if __name__ == '__main__':
    main()
