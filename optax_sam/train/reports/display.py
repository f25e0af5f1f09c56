"""How a method appears in pages: its name, links, colour and dash pattern."""

import dataclasses
import functools
import html
import importlib.metadata
import re
from collections.abc import Sequence

from optax_sam.catalog import METHODS
from optax_sam.train.reports.formats import printable

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
  """How a method, or a run, appears in every figure and table."""

  label: str  # the name in the paper, or the given name
  text: str  # the label in a figure: short, and escaped, as for HTML
  color: str  # name of a CSS variable
  dash: str  # name of a pattern and a marker of Plotly
  symbol: str
  link: str  # to the page of the method, or to the paper; may be empty


def styles(names: Sequence[str], base: str) -> dict[str, Style]:
  """Gives each method a name, a colour and a dash pattern.

  The base optimizer, the first one, has the colour of the text.
  """
  found, others = {}, 0
  for name in names:
    label, link = title(name), ''
    in_brackets = None
    if name in METHODS:
      page = f'{_site()}methods/{name}/'
      link = page if _site() else METHODS[name].paper.link
      in_brackets = re.search(r'\((\S+)\)$', label)
    color, (dash, symbol) = '--ink', ROUNDS[0]
    if name != base:
      color = f'--hue-{others % HUES}'
      dash, symbol = ROUNDS[others // HUES % len(ROUNDS)]
      others += 1
    text = html.escape(in_brackets[1] if in_brackets else label, quote=False)
    found[name] = Style(label, text, color, dash, symbol, link)
  return found


def title(name: str) -> str:
  """Returns the name of a method in its paper."""
  if name in METHODS:
    return METHODS[name].title
  return _BASES.get(name, printable(name))


@functools.cache
def _site() -> str:
  """Returns the address of the documentation in the package's metadata."""
  try:
    found = importlib.metadata.metadata('optax-sam').get_all('Project-URL')
  except importlib.metadata.PackageNotFoundError:
    return ''  # a source tree
  links = dict(line.split(', ', 1) for line in found or [])
  site = links.get('Documentation', '')
  return site and site.rstrip('/') + '/'
