"""How a method appears in pages: its name, links, colour and dash pattern."""

import dataclasses
import functools
import html
import importlib.metadata
import inspect
import re
from collections.abc import Iterable, Sequence

from optax_sam.catalog import METHODS, Method

# The hues of page.css that colour-blind readers tell apart.
HUES = 8
# One round of hues each: they tell methods of equal hue apart.
ROUNDS = (
  ('solid', 'circle'),
  ('dash', 'diamond'),
  ('dot', 'triangle-up'),
  ('dashdot', 'x'),
  ('longdash', 'square'),
)
_BASES = {'sgd': 'SGD', 'adamw': 'AdamW', 'adam': 'Adam', 'lion': 'Lion'}


@dataclasses.dataclass(frozen=True)
class Style:
  """How a method, or a run, appears in every figure and table.

  Attributes:
    label: The name in the paper, or the given name.
    color: Name of the CSS variable of its colour.
    dash: Dash pattern of its lines, as Plotly names it.
    symbol: Its marker, as Plotly names it.
    link: Address of the paper; empty if there is none.
    page: Address of the method's page; empty if no site is configured.
  """

  label: str
  color: str
  dash: str
  symbol: str
  link: str = ''
  page: str = ''

  @property
  def text(self) -> str:
    """The label in a figure: short, and escaped, as for HTML."""
    short = re.search(r'\((\S+)\)$', self.label) if self.link else None
    return html.escape(short[1] if short else self.label, quote=False)


def styles(names: Sequence[str], base: str) -> dict[str, Style]:
  """Gives each method a name, a colour and a dash pattern.

  Args:
    names: The methods, base optimizer first.
    base: Name of the base optimizer, which has the colour of the text.

  Returns:
    The style by method.
  """
  found = {}
  others = 0
  for name in names:
    paper = METHODS[name].paper.link if name in METHODS else ''
    page = f'{_site()}methods/{name}/' if paper and _site() else ''
    if name == base:
      found[name] = Style(title(name), '--ink', 'solid', 'circle', paper, page)
      continue
    dash, symbol = ROUNDS[others // HUES % len(ROUNDS)]
    color = f'--hue-{others % HUES}'
    found[name] = Style(title(name), color, dash, symbol, paper, page)
    others += 1
  return found


def title(name: str) -> str:
  """Returns the name of a method in its paper."""
  return METHODS[name].title if name in METHODS else _BASES.get(name, name)


def papers(names: Iterable[str]) -> str:
  """Returns the BibTeX entries of those of the methods that have a paper."""
  return '\n'.join(bibtex(METHODS[name]) for name in names if name in METHODS)


def bibtex(method: Method) -> str:
  """Returns the BibTeX entry of a method's paper, from catalog and docstring.

  Args:
    method: The row of the catalog.

  Returns:
    The entry, with a line break at its end.
  """
  paper = method.paper
  text = inspect.getdoc(method.function) or ''
  found = re.search(rf'`([^`<]+?)\s*<{re.escape(paper.link)}>`_', text)
  name = ' '.join(found[1].split()) if found else method.title
  authors = paper.authors.replace(' et al.', ' and others')
  key = re.sub(r'\W', '', paper.authors.split()[0].lower())
  return (
    f'@article{{{key}{paper.year}{method.name.replace("_", "")},\n'
    f'  title = {{{{{name}}}}},\n'
    f'  author = {{{authors}}},\n'
    f'  year = {{{paper.year}}},\n'
    f'  eprint = {{{paper.arxiv}}},\n'
    '  archivePrefix = {arXiv},\n'
    f'  url = {{{paper.link}}}\n'
    '}\n'
  )


@functools.cache
def _site() -> str:
  """Returns the address of the documentation in the package's metadata."""
  try:
    found = importlib.metadata.metadata('optax-sam').get_all('Project-URL')
  except importlib.metadata.PackageNotFoundError:
    found = None  # a source tree
  for line in found or []:
    label, _, address = line.partition(', ')
    if label.lower() == 'documentation':
      return address.rstrip('/') + '/'
  return ''
