"""Texts of numbers, settings and names, for pages and terminal."""

import math
from collections.abc import Sequence

from optax_sam.train.reports.results import Metric

MISSING = '\N{EN DASH}'
MINUS = '\N{MINUS SIGN}'
TIMES = '\N{MULTIPLICATION SIGN}'


def number(value: float | None, spec: str = '.3g') -> str:
  """Formats a number; a dash if it is missing or not finite."""
  if value is None or not math.isfinite(value):
    return MISSING
  return f'{value:{spec}}'.replace('-', MINUS)


def score(value: float | None, metric: Metric) -> str:
  """Formats a value of the metric, in percent without the sign."""
  scaled = None if value is None else metric.scale * value
  return number(scaled, '.2f' if metric.percent else '.4g')


def gain(value: float | None, metric: Metric) -> str:
  """Formats a difference of the metric with its sign, as in '+1.25'."""
  if value is None:
    return MISSING
  text = f'{metric.scale * value:+{".2f" if metric.percent else ".3g"}}'
  return text[1:] if float(text) == 0 else text.replace('-', MINUS)


def duration(seconds: float) -> str:
  """Formats a duration in the two largest units that it needs."""
  if not seconds >= 60:
    return f'{number(seconds)} s'
  minutes, rest = divmod(round(seconds), 60)
  if minutes < 60:
    return f'{minutes} min {rest} s'
  return f'{minutes // 60} h {minutes % 60} min'


def join(names: Sequence[str]) -> str:
  """Joins names as in a sentence: a, b and c."""
  return ' and '.join(
    [', '.join(names[:-1])] * (len(names) > 1) + [*names[-1:]]
  )


def count(size: int, noun: str) -> str:
  """Formats a count with its noun: 1 seed, 3 seeds."""
  return f'{size:,} {noun}{"" if size == 1 else "s"}'


def printable(text: str) -> str:
  """Escapes control characters, which terminals would obey."""
  shown = lambda c: c.isprintable() or c in '\n\N{NO-BREAK SPACE}'
  return ''.join(c if shown(c) else repr(c)[1:-1] for c in text)


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
