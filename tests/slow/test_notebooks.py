"""Notebooks: the files of a pair are in sync, and each notebook runs."""

import pathlib

import jupytext
import nbclient
import nbformat
import pytest

pytestmark = pytest.mark.slow

FOLDER = pathlib.Path(__file__).parents[2] / 'notebooks'
NOTEBOOKS = sorted(FOLDER.glob('*.ipynb'))
LIMIT = 300  # seconds per cell

each_notebook = pytest.mark.parametrize(
  'path', NOTEBOOKS, ids=lambda path: path.stem
)


def cells(notebook):
  return [(cell.cell_type, cell.source.strip()) for cell in notebook.cells]


def test_every_notebook_has_a_script():
  scripts = {path.stem for path in FOLDER.glob('*.py')}
  assert scripts == {path.stem for path in NOTEBOOKS} != set()


@each_notebook
def test_notebook_and_script_are_in_sync(path):
  script = jupytext.read(path.with_suffix('.py'))
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  assert cells(notebook) == cells(script), f'write: jupytext --sync {path}'


@each_notebook
def test_notebook_is_stored_without_outputs(path):
  for cell in nbformat.read(path, as_version=4).cells:
    assert not cell.get('outputs')
    assert cell.get('execution_count') is None


@each_notebook
def test_notebook_runs(path):
  notebook = nbformat.read(path, as_version=4)
  nbclient.NotebookClient(
    notebook,
    timeout=LIMIT,
    kernel_name='python3',
    resources={'metadata': {'path': str(FOLDER)}},
  ).execute()
  outputs = [
    output
    for cell in notebook.cells
    if cell.cell_type == 'code'
    for output in cell.outputs
  ]
  assert [o.text for o in outputs if o.get('name') == 'stderr'] == []
  plots = sum('image/png' in output.get('data', {}) for output in outputs)
  code = '\n'.join(source for kind, source in cells(notebook) if kind == 'code')
  assert plots == code.count('plt.show()')
  assert any(o.get('name') == 'stdout' for o in outputs)
