"""Figures of the test metric: differences, cost, sensitivity to settings."""

from collections.abc import Mapping, Sequence
from typing import Any

from optax_sam.catalog import METHODS
from optax_sam.train.reports import formats
from optax_sam.train.reports.curves import (
  gradients_until,
  is_drawable,
  seconds_until,
)
from optax_sam.train.reports.display import Style
from optax_sam.train.reports.figures import Figure, Row, axis, rows
from optax_sam.train.reports.results import (
  Comparison,
  Summary,
  Trial,
  finite,
  mean,
)


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


def sensitivity(
  comparison: Comparison, styles: Mapping[str, Style]
) -> list[Figure]:
  """Returns the metric on validation examples against each tuned setting.

  Args:
    comparison: The measured comparison.
    styles: Style by method.

  Returns:
    A figure for the radius and one for each further setting with more than
    one value.
  """
  by_setting: dict[str, dict[str, list[Trial]]] = {}
  for trial in comparison.trials:
    row = METHODS.get(trial.method)
    for name, value in trial.settings.items():
      if trial.method in styles and isinstance(value, int | float):
        shown = 'radius' if row and name == row.radius else name
        tried = by_setting.setdefault(shown, {})
        tried.setdefault(trial.method, []).append(trial)
  return [
    _sensitivity(comparison, styles, name, tried)
    for name, tried in sorted(
      by_setting.items(), key=lambda entry: entry[0] != 'radius'
    )
    if any(
      len(_best_by_value(of, name, comparison)) > 1 for of in tried.values()
    )
  ]


def _sensitivity(
  comparison: Comparison,
  styles: Mapping[str, Style],
  name: str,
  tried: Mapping[str, list[Trial]],
) -> Figure:
  scale = formats.scale(comparison.metric)
  traces: list[dict[str, Any]] = []
  words = []
  values: set[float] = set()
  for method, trials in tried.items():
    style, best = styles[method], _best_by_value(trials, name, comparison)
    values.update(best)
    settings = comparison.runs_of(method)[0].settings
    chosen = _setting(method, settings, name)
    traces.append(
      {
        'type': 'scatter',
        'legendgroup': method,
        'mode': 'lines+markers',
        'x': list(best),
        'y': [scale * value for value in best.values()],
        'line': {'color': style.color, 'dash': style.dash, 'width': 2},
        'marker': {
          'color': style.color,
          'symbol': style.symbol,
          'size': [15 if value == chosen else 6 for value in best],
        },
        'hovertemplate': f'{style.text}: %{{y:.4~g}} at {name} %{{x}}'
        '<extra></extra>',
      }
    )
    if chosen in best:
      words.append(f'{style.label} {formats.number(float(chosen))}')
  name = name.replace('_', ' ')
  return Figure(
    f'sensitivity-{name.replace(" ", "-")}',
    f'Sensitivity to the {name}',
    f'Best value on the validation examples for each {name} that was tried,'
    ' after the longest training. The large marker is the chosen value.',
    f'Chosen {name}: {"; ".join(words)}.',
    {
      'traces': traces,
      'end_labels': True,
      'layout': {
        'xaxis': axis(name, logarithmic=True)
        | {'tickvals': sorted(values), 'tickformat': '.3~g'},
        'yaxis': axis(value_label(comparison, 'validation')),
      },
    },
  )


def _setting(method: str, settings: Mapping[str, object], name: str) -> Any:
  if name == 'radius' and method in METHODS:
    name = METHODS[method].radius or name
  return settings.get(name)


def _best_by_value(
  trials: Sequence[Trial], name: str, comparison: Comparison
) -> dict[float, float]:
  """Returns the metric by value of a setting, mean over seeds.

  Only the longest trials of a value count: those of successive halving have
  different lengths. Other settings are those with the best metric.
  """
  grouped: dict[float, dict[str, list[Trial]]] = {}
  for trial in trials:
    value = _setting(trial.method, trial.settings, name)
    if value is not None and value > 0:
      key = repr(sorted(trial.settings.items()))
      grouped.setdefault(float(value), {}).setdefault(key, []).append(trial)
  choose = max if comparison.metric.higher_is_better else min
  found = {}
  for value, groups in sorted(grouped.items()):
    longest = max(trial.steps for of in groups.values() for trial in of)
    means = [
      mean(trial.validation_metric for trial in of if trial.steps == longest)
      for of in groups.values()
    ]
    if shown := [x for x in finite(means) if is_drawable(x)]:
      found[value] = choose(shown)
  return found
