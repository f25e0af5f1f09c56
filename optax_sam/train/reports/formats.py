"""Texts of numbers, settings and names, and the looks of methods."""

import html
import math
import re
from collections.abc import Sequence

from optax_sam.train.config import errors
from optax_sam.train.optimizers import registry
from optax_sam.train.reports.results import Metric

MISSING = '\N{EN DASH}'
MINUS = '\N{MINUS SIGN}'

# The hues of page.css that colour-blind readers tell apart.
HUES = 8
# One round of hues each: they tell methods of equal hue apart.
ROUNDS = (
  ('solid', 'circle'),
  ('dash', 'diamond'),
  ('dot', 'triangle-up'),
  ('dashdot', 'x'),
  ('longdash', 'square'),
  ('longdashdot', 'cross'),
)
# Those of the library; methods of a user have no paper.
ROWS = {name: method.row for name, method in registry.METHODS.items()}
_BASES = {'sgd': 'SGD', 'adamw': 'AdamW', 'adam': 'Adam', 'lion': 'Lion'}


def number(value: float | None, spec: str = '.3g') -> str:
  """Formats a number; a dash if it is missing or not finite."""
  if value is None or not math.isfinite(value):
    return MISSING
  return f'{value:{spec}}'.replace('-', MINUS)


def score(value: float | None, metric: Metric) -> str:
  """Formats a value of the metric, in percent without the sign."""
  return number(None if value is None else metric.scale * value, metric.spec)


def gain(value: float | None, metric: Metric) -> str:
  """Formats a difference of the metric with its sign, as in '+1.25'."""
  if value is None:
    return MISSING
  text = f'{metric.scale * value:+{".2f" if metric.percent else ".3g"}}'
  return text[1:] if float(text) == 0 else text.replace('-', MINUS)


def join(names: Sequence[str]) -> str:
  """Joins names as in a sentence: a, b and c."""
  return ' and '.join(filter(None, (', '.join(names[:-1]), *names[-1:])))


def count(size: int, noun: str) -> str:
  """Formats a count with its noun: 1 seed, 3 seeds."""
  return f'{size:,} {noun}{"" if size == 1 else "s"}'


def printable(text: str) -> str:
  """Escapes control characters except line breaks."""
  return '\n'.join(map(errors.printable, text.split('\n')))


def in_words(value: object) -> str:
  """Formats a setting as text."""
  if value is None or value in ([], (), {}):
    return 'none'
  if isinstance(value, bool):
    return 'yes' if value else 'no'
  if isinstance(value, list | tuple):
    return ', '.join(map(in_words, value))
  if isinstance(value, dict):
    return ', '.join(f'{key} = {in_words(x)}' for key, x in value.items())
  return str(value)


def title(name: str) -> str:
  """Returns the name of a method in its paper."""
  if name in ROWS:
    return ROWS[name].title
  return _BASES.get(name, printable(name))


def short_title(name: str) -> str:
  """Returns the abbreviation in brackets of a name, if it has one."""
  label = title(name)
  return re.sub(r'.*\((\S+)\)$', r'\1', label) if name in ROWS else label


def styles(names: Sequence[str], base: str) -> dict[str, dict[str, str]]:
  """Returns how each method, or run, appears in every figure and table.

  Each has a `label`, the name in its paper; the `text` for figures, short and
  escaped as for HTML; a `color`, which is a CSS variable; `dash` and `symbol`
  of Plotly; and a `link` to its paper or ''. The base optimizer has the colour
  of the text.
  """
  found = {}
  others = [name for name in names if name != base]
  for name in names:
    label, color, place = title(name), '--ink', 0
    if name != base:
      place = others.index(name)
      color = f'--hue-{place % HUES}'
    dash, symbol = ROUNDS[place // HUES % len(ROUNDS)]
    found[name] = {
      'label': label,
      'text': html.escape(short_title(name), quote=False),
      'color': color,
      'dash': dash,
      'symbol': symbol,
      'link': ROWS[name].paper.link if name in ROWS else '',
    }
  return found
