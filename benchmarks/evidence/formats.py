"""How the page shows numbers and rows of tables."""

from collections.abc import Iterable

from optax_sam.train.reports import paired
from optax_sam.train.reports.formats import number

# What the page calls the measures of sharpness.
MEASURES = {
  'sam_sharpness': 'rise after an ascent step',
  'random_sharpness': 'rise under noise',
  'rounding_rise': 'rise under rounding to 4 bits',
  'top_eigenvalue': 'top eigenvalue',
}


def interval(found: paired.Difference, digits: int = 2) -> str:
  """Returns a mean difference and its interval."""
  if found.mean is None:
    return ''
  spec = f'+.{digits}f'
  center = number(found.mean, spec)
  if found.interval is None:
    return center
  low, high = (number(end, spec) for end in found.interval)
  return f'{center} [{low}, {high}]'


def short(found: paired.Difference) -> str:
  """Returns a mean difference, bold if statistically significant."""
  mean = found.mean or 0.0
  spec = '+.1f' if abs(mean) >= 1 else '+.2f'
  shown = number(mean, '+.1g' if 0 < abs(mean) < 0.01 else spec)
  return f'**{shown}**' if found.significant else shown


def row(cells: Iterable[str]) -> str:
  """Returns a row of a table in Markdown."""
  return f'| {" | ".join(cells)} |'
