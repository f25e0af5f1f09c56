"""Notebooks as pages, with the outputs that are stored in them."""

import pathlib
import re

import nbconvert
import nbformat
from nbconvert.preprocessors import CoalesceStreamsPreprocessor

# In the order of a course.
NOTEBOOKS = {
  'quickstart': 'Quickstart',
  'choosing_a_method': 'Choosing a method',
  'composing': 'Composing',
  'ae_sam_policy': "AE-SAM's policy",
  'sparse_masks': 'Sparse masks',
  'landscapes': 'Landscapes',
  'many_devices': 'Many devices',
}
# Their outputs have bright and dark parts: no negative on dark pages.
_WITH_IMAGES = ('sparse_masks',)
_PICTURE = re.compile(r'!\[png\]\((.+?)\)')
_FOLDER = pathlib.Path(__file__).parents[2] / 'notebooks'


def nav() -> list[dict[str, str]]:
  """Returns the pages as a part of the navigation."""
  return [
    {title: f'learn/notebooks/{name}.md'} for name, title in NOTEBOOKS.items()
  ]


def pages() -> dict[str, str | bytes]:
  """Returns the content of each page and picture, by its name.

  Raises:
    ValueError: if a notebook is in no page.
  """
  present = {path.stem for path in _FOLDER.glob('*.ipynb')}
  if present != NOTEBOOKS.keys():
    names = ', '.join(sorted(present ^ NOTEBOOKS.keys()))
    msg = f'NOTEBOOKS in {pathlib.Path(__file__).name} differs in {names}'
    raise ValueError(msg)
  exporter = nbconvert.MarkdownExporter()
  exporter.register_preprocessor(CoalesceStreamsPreprocessor, enabled=True)
  found: dict[str, str | bytes] = {}
  for name in NOTEBOOKS:
    notebook = nbformat.read(_FOLDER / f'{name}.ipynb', as_version=4)
    notebook.metadata.language_info = {'name': 'python'}
    pictures = {'unique_key': name, 'output_files_dir': name}
    text, resources = exporter.from_notebook_node(notebook, pictures)
    kind = 'image' if name in _WITH_IMAGES else 'plot'
    text = _PICTURE.sub(rf'![output of the cell above](\1){{ .{kind} }}', text)
    found[f'learn/notebooks/{name}.md'] = text.lstrip()
    for path, content in resources['outputs'].items():
      found[f'learn/notebooks/{path}'] = content
  return found
