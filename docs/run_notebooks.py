"""Runs notebooks and stores their outputs.

`make notebooks` runs all of them; `python docs/run_notebooks.py quickstart`
runs one. The scripts are the source: cells of a notebook are those of its
script.
"""

import pathlib
import sys
import time

import jupytext
import nbclient
import nbformat

FOLDER = pathlib.Path(__file__).parents[1] / 'notebooks'
LIMIT = 300  # seconds per cell


def execute(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
  """Returns the notebook with new outputs and without times of execution."""
  client = nbclient.NotebookClient(
    notebook,
    timeout=LIMIT,
    kernel_name='python3',
    record_timing=False,
    coalesce_streams=True,
    resources={'metadata': {'path': str(FOLDER)}},
  )
  client.execute()
  notebook.metadata.pop('language_info', None)  # the Python of this machine
  return notebook


def main(names: list[str]) -> None:
  """Stores the outputs of the notebooks with these names, or of all."""
  paths = [FOLDER / f'{name}.ipynb' for name in names]
  for path in paths or sorted(FOLDER.glob('*.ipynb')):
    begin = time.monotonic()
    script = jupytext.read(path.with_suffix('.py'))
    notebook = execute(script)
    for number, cell in enumerate(notebook.cells):
      cell.id = f'{path.stem.replace("_", "-")}-{number}'
    nbformat.validate(notebook)
    jupytext.write(notebook, path)
    print(f'{path.name}: {time.monotonic() - begin:.0f} s', flush=True)


if __name__ == '__main__':
  main(sys.argv[1:])
