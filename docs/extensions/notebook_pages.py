"""Notebooks as pages, with the outputs that are stored in them."""

import functools
import pathlib
import re

import nbconvert
import nbformat
from nbconvert.preprocessors import CoalesceStreamsPreprocessor

# Titles and contents, in the order of a course.
NOTEBOOKS = {
  'quickstart': (
    'Quickstart',
    (
      'One network trained with SGD, SAM and AE-SAM on labels of which a third '
      'is wrong.'
    ),
  ),
  'choosing_a_method': (
    'Choosing a method',
    (
      'A radius tuned on validation examples, and what too large a radius '
      'looks like.'
    ),
  ),
  'nnx_batch_norm': (
    'Batch norm in NNX',
    (
      'A convolutional network with batch norm and dropout; SAM of the '
      'normalization layers only.'
    ),
  ),
  'equinox_dropout': (
    'Dropout in Equinox',
    'Parameters and other leaves; a run that is saved and resumed exactly.',
  ),
  'fine_tuning': (
    'Fine-tuning',
    (
      'A frozen base with low-rank adapters; a mask that keeps frozen '
      'parameters out of the radius.'
    ),
  ),
  'composing': (
    'Composing',
    'Write a perturbation and a policy; masks; a schedule of the radius.',
  ),
  'ae_sam_policy': (
    "AE-SAM's policy",
    (
      'The threshold and the decisions step by step, compared with SS-SAM and '
      'LookSAM.'
    ),
  ),
  'sparse_masks': (
    'Sparse masks',
    'Which weights the sparse methods perturb, by layer and by pixel.',
  ),
  'landscapes': (
    'Landscapes',
    (
      'Lines, planes and the path between an SGD and a SAM solution, with '
      'eigenvalues.'
    ),
  ),
  'many_devices': (
    'Many devices',
    (
      '`jit`, FSDP and `shard_map` on four CPU devices: what is equal, and '
      'what each sends.'
    ),
  ),
}
# The number in the name of a picture is that of its cell.
_PICTURE = re.compile(r'!\[png\]\((.+?_(\d+)_\d+\.png)\)')
_FOLDER = pathlib.Path(__file__).parents[2] / 'notebooks'
_PAGES = 'learn/notebooks'


def nav() -> list[dict[str, str]]:
  """Returns the pages as a part of the navigation."""
  return [
    {title: f'{_PAGES}/{name}.md'} for name, (title, _) in NOTEBOOKS.items()
  ]


@functools.cache
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
    picture = functools.partial(_picture, notebook)
    found[f'{_PAGES}/{name}.md'] = _PICTURE.sub(picture, text).lstrip()
    for path, content in resources['outputs'].items():
      found[f'{_PAGES}/{path}'] = content
  return found


def gallery() -> str:
  """Returns a card for each notebook, with the first of its pictures."""
  cards = []
  for number, (name, (title, text)) in enumerate(NOTEBOOKS.items(), 1):
    pictures = [
      path.removeprefix(f'{_PAGES}/')
      for path in pages()
      if path.startswith(f'{_PAGES}/{name}/')
    ]
    shown = ''.join(f'![]({x}){{ .plot }}<br>' for x in pictures[:1])
    cards.append(f'- {shown}**{number}. [{title}]({name}.md)**<br>\n  {text}')
  lines = '\n'.join(cards)
  return f'<div class="gallery" markdown>\n\n{lines}\n\n</div>'


def _picture(notebook: nbformat.NotebookNode, found: re.Match[str]) -> str:
  # Dark pages show plots as a negative, but not images.
  source = notebook.cells[int(found[2])].source
  kind = 'image' if '.imshow(' in source else 'plot'
  return f'![output of the cell above]({found[1]}){{ .{kind} }}'
