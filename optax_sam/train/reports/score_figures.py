"""Figures of the test metric: differences, cost, sensitivity to settings."""

from collections.abc import Mapping, Sequence

from optax_sam.train.reports import formats
from optax_sam.train.reports.curves import (
  gradients_until,
  seconds_until,
)
from optax_sam.train.reports.display import Style
from optax_sam.train.reports.figures import Figure, Row, rows
from optax_sam.train.reports.results import Comparison
from optax_sam.train.reports.summary import Summary, finite, mean


def differences(
  comparison: Comparison,
  summary: Sequence[Summary],
  styles: Mapping[str, Style],
) -> Figure:
  """Returns the differences to the base optimizer with their intervals.

  Args:
    comparison: The measured comparison.
    summary: The summary of the comparison.
    styles: Style by method.

  Returns:
    The figure; without content if there is no difference.
  """
  metric, scale = comparison.metric, formats.scale(comparison.metric)
  base = styles[comparison.base].label if comparison.base in styles else ''
  given, fitted, words = [], [0.0], []
  for row in summary:
    difference = row.difference
    if difference.mean is None:
      continue
    low, high = difference.interval or (difference.mean, difference.mean)
    text = formats.gain(difference.mean, metric)
    made = Row(
      row.method,
      scale * difference.mean,
      difference.interval and (scale * low, scale * high),
      [scale * value for value in difference.by_seed.values()],
      text,
      filled=difference.significant,
    )
    given.append(made)
    if not row.diverged:
      # The row of a diverged run may leave the axis: it would flatten others.
      fitted += [made.center, *(made.interval or ()), *made.seeds]
    verdict = formats.verdict_of(difference, metric)
    words.append(f'{styles[row.method].label} {text} ({verdict})')
  name = formats.name_of(metric)
  unit = ', percentage points' if metric.percent else ''
  content = rows(
    given,
    styles,
    f'difference in test {name}{formats.comma_unit(metric)}',
    reference=0.0,
    fit=fitted if len(fitted) > 1 else (),
  )
  right = 'right' if metric.higher_is_better else 'left'
  return Figure(
    'differences',
    f'Difference to {base}',
    'Mean of the paired differences, with its 95% interval; small dots are'
    f' seeds. Better is to the {right}. Filled marker and thick line: a clear'
    ' difference, corrected for the number of methods. An arrow points to a'
    ' method outside of the axis.',
    f'Difference in test {name}{unit}: {"; ".join(words)}.',
    content,
  )


def tradeoff(
  comparison: Comparison,
  summary: Sequence[Summary],
  styles: Mapping[str, Style],
) -> Figure:
  """Returns the test metric against seconds and gradients of a run.

  Methods with a diverged run are left out because they would flatten the
  others.

  Args:
    comparison: The measured comparison.
    summary: The summary of the comparison.
    styles: Style by method.

  Returns:
    The figure; without content for fewer than two methods.
  """
  metric, scale = comparison.metric, formats.scale(comparison.metric)
  points, words = [], []
  for row in summary:
    if row.diverged or row.score is None:
      continue
    gradients, seconds = spent(comparison, row.method)
    points.append(
      {
        'method': row.method,
        'y': scale * row.score,
        'error': scale * (row.score_deviation or 0.0),
        'gradients': gradients,
        'seconds': seconds,
      }
    )
    words.append(
      f'{styles[row.method].label} {formats.score(row.score, metric)} in'
      f' {formats.number(seconds)} s'
    )
  name = formats.name_of(metric)
  content = None
  if len(points) > 1:
    content = {
      'points': points,
      'label': value_label(comparison),
      'higher_is_better': metric.higher_is_better,
    }
  best = 'Up and left' if metric.higher_is_better else 'Down and left'
  return Figure(
    'tradeoff',
    f'Test {name} against cost',
    f'Mean over seeds; bars: std over seeds. {best} is better. The dashed line'
    ' joins the methods that no other beats in both. The switch above chooses'
    ' gradients or seconds of a run.',
    f'Test {name} and seconds of training: {"; ".join(words)}.',
    content,
  )


def step_time(
  summary: Sequence[Summary], styles: Mapping[str, Style]
) -> Figure:
  """Returns the time per step relative to the base optimizer.

  Args:
    summary: The summary of the comparison.
    styles: Style by method.

  Returns:
    The figure; without content if nothing was timed.
  """
  given = [
    Row(
      row.method,
      row.relative_time,
      row.relative_time_quartiles,
      [],
      formats.ratio(row.relative_time),
    )
    for row in summary
    if row.relative_time is not None
  ]
  words = '; '.join(f'{styles[row.method].label} {row.text}' for row in given)
  return Figure(
    'step-time',
    'Time per step',
    'Relative to the base optimizer in the same round: median, and a line from'
    ' the first to the third quartile.',
    f'Time per step, base optimizer = 1: {words}.',
    rows(given, styles, 'time per step, base optimizer = 1', reference=1.0),
  )


def total_time(comparison: Comparison, styles: Mapping[str, Style]) -> Figure:
  """Returns the wall time of the runs, a row for each method.

  Args:
    comparison: The measured comparison.
    styles: Style by method.

  Returns:
    The figure; without content without runs.
  """
  given = []
  for method in styles:
    seconds = finite(
      run.seconds
      for run in comparison.runs_of(method)
      if comparison.is_complete(run)
    )
    if seconds:
      center = sum(seconds) / len(seconds)
      text = formats.duration(center) if center >= 60 else f'{center:#.3g} s'
      given.append(Row(method, center, None, seconds, text))
  words = '; '.join(f'{styles[row.method].label} {row.text}' for row in given)
  return Figure(
    'total-time',
    'Total time of a run',
    'Wall time with evaluations: mean; small dots are seeds.',
    f'Total time of a run: {words}.',
    rows(given, styles, 'seconds'),
  )


def spent(
  comparison: Comparison, method: str
) -> tuple[float | None, float | None]:
  """Returns the gradients and the seconds of a complete run, means."""
  done = [
    run for run in comparison.runs_of(method) if comparison.is_complete(run)
  ]
  gradients = [max(gradients_until(run).values(), default=None) for run in done]
  seconds = [
    max(seconds_until(comparison, run).values(), default=None) for run in done
  ]
  return mean(gradients), mean(seconds)


def value_label(comparison: Comparison, data: str = 'test') -> str:
  """Returns the title of an axis of the metric."""
  unit = ', %' if comparison.metric.percent else ''
  return f'{data} {formats.name_of(comparison.metric)}{unit}'
