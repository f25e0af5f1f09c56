"""Formats numbers of a comparison for page and terminal."""

from collections.abc import Sequence

from optax_sam.train.reports.paired import Difference
from optax_sam.train.reports.results import Metric
from optax_sam.train.reports.summary import Summary

MISSING = '\N{EN DASH}'
MINUS = '\N{MINUS SIGN}'
TIMES = '\N{MULTIPLICATION SIGN}'
ACCURACY = Metric()


def number(value: float | None) -> str:
  """Formats a number with three significant digits."""
  return MISSING if value is None else _minus(f'{value:.3g}')


def percent(value: float | None, digits: int = 2) -> str:
  """Formats a fraction in percent, without the sign."""
  return MISSING if value is None else f'{100 * value:.{digits}f}'


def score(value: float | None, metric: Metric) -> str:
  """Formats a value of the metric, in percent without the sign."""
  if metric.percent or value is None:
    return percent(value)
  return _minus(f'{value:.4g}')


def gain(value: float, metric: Metric) -> str:
  """Formats a difference of the metric with its sign.

  Args:
    value: The difference.
    metric: The metric; percentages differ in percentage points.

  Returns:
    The text, as in '+1.25' or '-0.03', without a unit.
  """
  text = f'{100 * value:+.2f}' if metric.percent else f'{value:+.3g}'
  if float(text) == 0:
    return '0.00' if metric.percent else '0'
  return _minus(text)


def name_of(metric: Metric) -> str:
  """Returns the name of the metric in words."""
  return metric.name.replace('_', ' ')


def unit(metric: Metric) -> str:
  """Returns the unit of a difference, with a space before it."""
  return ' points' if metric.percent else ''


def comma_unit(metric: Metric) -> str:
  """Returns the unit of a difference, with a comma before it."""
  return ', points' if metric.percent else ''


def scale(metric: Metric) -> float:
  """Returns the factor from a value to the number that is shown."""
  return 100.0 if metric.percent else 1.0


def ratio(value: float | None) -> str:
  """Formats a ratio such as 1.93."""
  return MISSING if value is None else f'{value:.2f}{TIMES}'


def moment(started: str) -> str:
  """Formats an ISO date and time to the minute."""
  return started.replace('T', ' ')[:16]


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


def interval(difference: Difference, metric: Metric) -> str:
  """Formats the interval of a difference."""
  if difference.interval is None:
    return 'no interval'
  low, high = difference.interval
  return f'{gain(low, metric)} to {gain(high, metric)}'


def join(names: Sequence[str]) -> str:
  """Joins names as in a sentence: a, b and c."""
  if len(names) < 2:
    return ''.join(names)
  return f'{", ".join(names[:-1])} and {names[-1]}'


def count(size: int, noun: str) -> str:
  """Formats a count with its noun: 1 seed, 3 seeds."""
  return f'{size:,} {noun}' + ('' if size == 1 else 's')


def is_better(difference: Difference, metric: Metric) -> bool:
  """Whether a difference is in the direction of the metric."""
  return ((difference.mean or 0.0) > 0) == metric.higher_is_better


def verdict_of(difference: Difference, metric: Metric) -> str:
  """Returns what a difference shows: better, worse, or nothing clear."""
  if not difference.significant:
    judged = difference.interval is not None
    return 'no clear difference' if judged else 'not tested'
  return 'better' if is_better(difference, metric) else 'worse'


def cells(row: Summary, metric: Metric = ACCURACY) -> dict[str, str]:
  """Formats the cells of a row of the summary.

  Args:
    row: The row.
    metric: The metric of the comparison.

  Returns:
    The text of each cell; empty if the number is missing.
  """
  difference = row.difference
  shown, verdict = '', ''
  if row.is_base:
    shown = 'base'
  elif difference.mean is None:
    shown = MISSING
  else:
    shown = gain(difference.mean, metric)
    verdict = verdict_of(difference, metric)
    if difference.adjusted_p_value is not None:
      p = difference.adjusted_p_value
      verdict += ', p < 0.001' if p < 0.001 else f', p = {p:.2g}'
  deviation = row.score_deviation
  low, high = row.relative_time_quartiles or (None, None)
  notes = [f'{row.diverged} diverged'] if row.diverged else []
  notes += [f'{row.unfinished} unfinished'] if row.unfinished else []
  tested = difference.interval is not None
  return {
    'method': row.method,
    'score': score(row.score, metric),
    'deviation': '' if deviation is None else score(deviation, metric),
    'difference': shown,
    'interval': interval(difference, metric) if tested else '',
    'verdict': verdict,
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
