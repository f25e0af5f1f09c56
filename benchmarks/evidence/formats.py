"""How the page shows numbers and rows of tables."""

from collections.abc import Iterable

from optax_sam.train.reports import paired

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
  center = signed(found.mean, digits)
  if found.interval is None:
    return center
  low, high = (signed(end, digits) for end in found.interval)
  return f'{center} [{low}, {high}]'


def signed(value: float, digits: int = 2) -> str:
  """Returns a number with its sign."""
  return f'{value:+.{digits}f}'.replace('-', '\N{MINUS SIGN}')


def short(found: paired.Difference) -> str:
  """Returns a mean difference, bold if statistically significant."""
  mean = found.mean or 0.0
  shown = signed(mean, 1 if abs(mean) >= 1 else 2)
  if 0 < abs(mean) < 0.01:  # one digit
    shown = f'{mean:+.1g}'.replace('-', '\N{MINUS SIGN}')
  return f'**{shown}**' if found.significant else shown


def row(cells: Iterable[str]) -> str:
  """Returns a row of a table in Markdown."""
  return f'| {" | ".join(cells)} |'
