"""Notebooks: in sync with their scripts; stored and new outputs agree."""

import pathlib
import re

import jupytext
import nbclient
import nbformat
import pytest

from tests import compiling

pytestmark = pytest.mark.slow

FOLDER = pathlib.Path(__file__).parents[2] / 'notebooks'
NOTEBOOKS = sorted(FOLDER.glob('*.ipynb'))
LIMIT = 300  # seconds per cell
MAX_BYTES = 6_000_000  # of all notebooks
MACHINE = re.compile(r'site-packages|/(home|root|tmp|Users|work|usr)/|Warning')

each_notebook = pytest.mark.parametrize(
  'path', NOTEBOOKS, ids=lambda path: path.stem
)


def cells(notebook):
  return [(cell.cell_type, cell.source.strip()) for cell in notebook.cells]


def code_cells(notebook):
  return [cell for cell in notebook.cells if cell.cell_type == 'code']


def kinds(notebook):
  """Returns the kinds of outputs of each code cell."""
  return [
    [
      output.get('name') or tuple(sorted(output.data))
      for output in cell.outputs
    ]
    for cell in code_cells(notebook)
  ]


def texts(notebook):
  for cell in code_cells(notebook):
    for output in cell.outputs:
      yield output.get('text', '')
      yield output.get('data', {}).get('text/plain', '')


def test_every_notebook_has_a_script():
  scripts = {path.stem for path in FOLDER.glob('*.py')} - {'style'}
  assert scripts == {path.stem for path in NOTEBOOKS} != set()


def test_notebooks_are_small():
  assert sum(path.stat().st_size for path in NOTEBOOKS) < MAX_BYTES


@each_notebook
def test_notebook_and_script_are_in_sync(path):
  script = jupytext.read(path.with_suffix('.py'))
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  assert cells(notebook) == cells(script), f'write: make notebooks ({path})'


@each_notebook
def test_stored_outputs_are_complete_and_clean(path):
  notebook = nbformat.read(path, as_version=4)
  counts = [cell.execution_count for cell in code_cells(notebook)]
  assert counts == list(range(1, len(counts) + 1))
  found = [kind for of_cell in kinds(notebook) for kind in of_cell]
  assert 'stderr' not in found
  assert 'stdout' in found
  plots = sum('image/png' in kind for kind in found)
  code = '\n'.join(cell.source for cell in code_cells(notebook))
  assert plots == code.count('plt.show()') > 0
  assert not [text for text in texts(notebook) if MACHINE.search(text)]


@each_notebook
def test_notebook_runs_with_outputs_of_the_same_kinds(path, monkeypatch):
  # Compiling takes most of the time.
  monkeypatch.setenv('XLA_FLAGS', compiling.FLAGS)
  stored = nbformat.read(path, as_version=4)
  notebook = nbformat.read(path, as_version=4)
  nbclient.NotebookClient(
    notebook,
    timeout=LIMIT,
    kernel_name='python3',
    coalesce_streams=True,
    resources={'metadata': {'path': str(FOLDER)}},
  ).execute()
  assert len(notebook.cells) == len(stored.cells)
  assert kinds(notebook) == kinds(stored)
