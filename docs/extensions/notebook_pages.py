"""Notebooks as pages, with the outputs that are stored in them."""

import pathlib

import nbconvert

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
  found: dict[str, str | bytes] = {}
  for name in NOTEBOOKS:
    pictures = {'unique_key': name, 'output_files_dir': name}
    text, resources = exporter.from_filename(
      str(_FOLDER / f'{name}.ipynb'), resources=pictures
    )
    found[f'learn/notebooks/{name}.md'] = text.lstrip()
    for path, content in resources['outputs'].items():
      found[f'learn/notebooks/{path}'] = content
  return found
