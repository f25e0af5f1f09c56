"""Formats numbers of a comparison for page and terminal."""

from collections.abc import Sequence

from optax_sam.train.reports.paired import Difference
from optax_sam.train.reports.results import Summary

MISSING = '\N{EN DASH}'
MINUS = '\N{MINUS SIGN}'
TIMES = '\N{MULTIPLICATION SIGN}'


def number(value: float | None) -> str:
  """Formats a number with three significant digits."""
  return MISSING if value is None else _minus(f'{value:.3g}')


def percent(value: float | None, digits: int = 2) -> str:
  """Formats a fraction in percent, without the sign."""
  return MISSING if value is None else f'{100 * value:.{digits}f}'


def points(value: float) -> str:
  """Formats a difference of fractions in percentage points, with its sign."""
  text = f'{100 * value:+.2f}'
  return '0.00' if float(text) == 0 else _minus(text)


def ratio(value: float | None) -> str:
  """Formats a ratio such as 1.93."""
  return MISSING if value is None else f'{value:.2f}{TIMES}'


def duration(seconds: float) -> str:
  """Formats a duration in the two largest units that it needs."""
  seconds = round(seconds)
  if seconds < 60:
    return f'{seconds} s'
  minutes, seconds = divmod(seconds, 60)
  if minutes < 60:
    return f'{minutes} min {seconds} s'
  hours, minutes = divmod(minutes, 60)
  return f'{hours} h {minutes} min'


def memory(size: int | None) -> str:
  """Formats a number of bytes in MiB."""
  return MISSING if size is None else f'{size / 2**20:,.1f} MiB'


def interval(difference: Difference) -> str:
  """Formats the interval of a difference, in percentage points."""
  if difference.interval is None:
    return 'no interval'
  low, high = difference.interval
  return f'{points(low)} to {points(high)}'


def join(names: Sequence[str]) -> str:
  """Joins names as in a sentence: a, b and c."""
  if len(names) < 2:
    return ''.join(names)
  return f'{", ".join(names[:-1])} and {names[-1]}'


def count(size: int, noun: str) -> str:
  """Formats a count with its noun: 1 seed, 3 seeds."""
  return f'{size:,} {noun}' + ('' if size == 1 else 's')


def verdict_of(difference: Difference) -> str:
  """Returns the verdict of an interval."""
  if difference.interval is None:
    return 'no interval'
  if not difference.significant:
    return 'interval contains 0'
  more = (difference.mean or 0.0) > 0
  return 'more accurate' if more else 'less accurate'


def cells(row: Summary) -> dict[str, str]:
  """Formats the cells of a row of the summary.

  Args:
    row: The row.

  Returns:
    The text of each cell; empty if the number is missing.
  """
  difference = row.difference
  shown, verdict, verdict_class = '', '', 'open'
  if row.is_base:
    shown = 'base'
  elif difference.mean is None:
    shown = MISSING
  else:
    shown = points(difference.mean)
    verdict = verdict_of(difference)
    verdict_class = 'significant' if difference.significant else 'open'
  deviation = row.score_deviation
  low, high = row.relative_time_quartiles or (None, None)
  notes = [f'{row.diverged} diverged'] if row.diverged else []
  notes += [f'{row.unfinished} unfinished'] if row.unfinished else []
  return {
    'method': row.method,
    'accuracy': percent(row.score),
    'deviation': '' if deviation is None else percent(deviation),
    'difference': shown,
    'interval': interval(difference) if difference.interval else '',
    'verdict': verdict,
    'verdict_class': verdict_class,
    'second_gradients': percent(row.second_gradients, 1),
    'time': ratio(row.relative_time),
    'quartiles': '' if low is None else f'{low:.2f} to {high:.2f}',
    'sam_sharpness': number(row.sam_sharpness),
    'top_eigenvalue': number(row.top_eigenvalue),
    'memory': memory(row.temporary_bytes),
    'seeds': str(row.seeds),
    'notes': ', '.join(notes),
  }


def _minus(text: str) -> str:
  return text.replace('-', MINUS)
