"""Figures of the pages, as plain data: `figures.js` draws them.

A figure has a `name`, a `title`, a `caption`, an `alternative` text, and
`rows`, `curves`, `points` or a `plane`.
"""

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from optax_sam.catalog import METHODS
from optax_sam.train.reports import curves
from optax_sam.train.reports.curves import is_drawable
from optax_sam.train.reports.display import title as label_of
from optax_sam.train.reports.formats import duration, gain, number
from optax_sam.train.reports.results import Comparison, Run, Trial
from optax_sam.train.reports.summary import Summary, finite, mean

# An axis is logarithmic if its values span more than this factor.
_LOGARITHMIC = 8
_DOTS = 'Small dots are seeds.'
_LOGGED = ('learning_rate', 'gradient_norm', 'update_norm', 'parameter_norm')
_EVALUATIONS = operator.attrgetter('evaluations')
_LOG = operator.attrgetter('log')

Figure = dict[str, Any]
_Row = Mapping[str, float]


def rows(
  title: str, caption: str, given: Iterable[Mapping[str, Any]], **content: Any
) -> list[Figure]:
  """Returns a figure with a row for each method; none without rows.

  Args:
    title: Title of the figure.
    caption: Explanation.
    given: From top to bottom: `method`, `center`, and optionally `text`,
      `verdict`, the ends of a bar `low` and `high`, values of the `seeds`, and
      whether a run `diverged`.
    **content: `name`, `label` of the x axis, and `reference`, a vertical line.
  """
  found = [
    {'text': number(row['center']), **row}
    for row in given
    if is_drawable(row['center'])
  ]
  words = [
    f'{row["text"]} ({row["verdict"]})' if 'verdict' in row else row['text']
    for row in found
  ]
  content = {'reference': None, **content, 'rows': found}
  return _figure(title, caption, zip(found, words, strict=True), content)


def lines(
  title: str,
  caption: str,
  found: Iterable[Mapping[str, Any] | None],
  *,
  log: bool = True,
  **content: Any,
) -> list[Figure]:
  """Returns a figure with a curve for each method; none without curves.

  Args:
    title: Title of the figure.
    caption: Explanation.
    found: Curves over the steps (`curves.over_seeds`), or with `x` and `y`.
    log: Whether the axis is logarithmic if the values span decades.
    **content: `name`, `label` and `range` of the y axis, values to `include` in
      it, the fraction of the curves to `skip` for it, `x_label` and `x_log`.
  """
  shown = [curve for curve in found if curve]
  values = finite(y for curve in shown for y in curve['y'])
  if any(curve.get('diverged') for curve in shown):
    caption += ' A curve ends where its first run diverged.'
  log = log and 0 < min(values, default=0) * _LOGARITHMIC < max(values)
  content = {'skip': 0, 'include': [], 'log': log, **content, 'curves': shown}
  words = [number(curve['y'][-1]) for curve in shown]
  return _figure(title, caption, zip(shown, words, strict=True), content)


def _figure(
  title: str, caption: str, words: Iterable[tuple[Any, str]], content: Figure
) -> list[Figure]:
  text = '; '.join(f'{label_of(one["method"])} {text}' for one, text in words)
  figure = {
    'title': title,
    'name': title.lower().replace(' ', '-'),
    'label': title[0].lower() + title[1:],
    'caption': caption.strip(),
    'alternative': f'{title}: {text}.',
  }
  return [figure | content] if text else []


def scores(comparison: Comparison, summary: Sequence[Summary]) -> list[Figure]:
  """Returns differences to the base, value against cost, and times."""
  metric = comparison.metric
  percent, points = _units(comparison)
  better = 'right' if metric.higher_is_better else 'left'
  differences, steps, totals, costs = [], [], [], []
  for row in summary:
    name, found = row.method, row.difference
    difference = {
      'center': found.mean,
      'bar': found.interval,
      'seeds': list(found.by_seed.values()),
      'text': gain(found.mean, metric),
      'verdict': found.verdict,
      'diverged': row.diverged > 0,
    }
    differences.append({'method': name, **difference})
    step = {'center': row.relative_time, 'bar': row.relative_time_quartiles}
    steps.append({'method': name, **step})
    times = finite(run.seconds for run in comparison.complete_runs(name))
    totals.append(_over_seeds(name, times, duration))
    # A diverged method would flatten the others.
    if row.score is not None and not row.diverged:
      gradients, seconds = curves.spent(comparison, name)
      cost = {'gradients': gradients, 'seconds': seconds}
      error = metric.scale * (row.score_deviation or 0.0)
      y = {'y': metric.scale * row.score, 'error': error}
      costs.append({'method': name, **cost, **y})
  words = [f'{number(one["y"])} in {number(one["seconds"])} s' for one in costs]
  tradeoff = _figure(
    f'Test {metric.title} against cost',
    'Mean over seeds; bars: std over seeds. The dashed line joins the methods'
    ' that no other beats in both.',
    zip(costs, words, strict=True),
    {
      'name': 'tradeoff',
      'points': costs,
      'label': f'test {metric.title}{percent}',
      'sign': metric.sign,
    },
  )
  return [
    *rows(
      f'Difference to {label_of(comparison.base)}',
      f'Mean of the paired differences, with 95% interval. {_DOTS} Better is to'
      f' the {better}. Filled marker: a clear difference, corrected for the'
      ' number of methods. An arrow points to a method outside of the axis.',
      differences,
      name='differences',
      label=f'difference in test {metric.title}{points}',
      reference=0,
      scale=metric.scale,
    ),
    *(tradeoff if len(costs) > 1 else []),
    *rows(
      'Time per step, base optimizer = 1',
      'In the same round: median and quartiles.',
      steps,
      name='step-time',
      reference=1,
    ),
    *rows(
      'Total time of a run',
      f'With evaluations, in seconds. {_DOTS}',
      totals,
      label='seconds',
    ),
  ]


def _units(comparison: Comparison) -> tuple[str, str]:
  """Returns the units of a value of the metric and of a difference."""
  return (', %', ', points') if comparison.metric.percent else ('', '')


def _over_seeds(
  method: str, values: list[float], text: Callable[[float], str] = number
) -> dict[str, Any]:
  center = mean(values)
  words = '' if center is None else text(center)
  return {'method': method, 'center': center, 'seeds': values, 'text': words}


def learning_curves(comparison: Comparison) -> list[Figure]:
  """Returns losses and metrics on training and test examples."""
  metric = comparison.metric
  percent, points = _units(comparison)
  test = _value(f'test_{metric.name}', metric.scale)
  train = _value(f'train_{metric.name}', metric.scale)
  gap = lambda row: train(row) - test(row)
  test_name, train_name, gap_name = (
    {'name': name} for name in ('test-metric', 'train-metric', 'gap')
  )
  early = {'skip': 0.25}  # the range of the axis ignores the first quarter
  figures = [
    (f'Test {metric.title}{percent}', test, test_name | early),
    (f'Training {metric.title}{percent}', train, train_name | early),
    (f'Training minus test {metric.title}{points}', gap, gap_name),
  ]
  if metric.name != 'loss':
    figures.append(('Test loss', _value('test_loss'), {}))
  made = _course(comparison, 'Training loss', _LOG, _value('loss'))
  for title, value, options in figures:
    made += _course(comparison, title, _EVALUATIONS, value, **options)
  return made


def course(comparison: Comparison) -> list[Figure]:
  """Returns the fraction of perturbed gradients, learning rate and norms."""
  title, fractions = (
    'Perturbed gradients, % of steps',
    curves.perturbed_fraction,
  )
  options = {'name': 'perturbed-gradients', 'include': (0, 100)}
  value = _value('fraction', 100)
  made = _course(comparison, title, fractions, value, **options)
  for key in _LOGGED:
    title = key.replace('_', ' ').capitalize()
    made += _course(comparison, title, _LOG, _value(key), log=False)
  return made


def _course(
  comparison: Comparison,
  title: str,
  rows_of: Callable[[Run], Iterable[_Row]],
  value: Callable[[_Row], float],
  **options: Any,
) -> list[Figure]:
  found = [
    curves.over_seeds(comparison, method, rows_of, value)
    for method in comparison.methods
  ]
  return lines(title, '', found, **options)


def _value(key: str, scale: float = 1.0) -> Callable[[_Row], float]:
  return lambda row: scale * row.get(key, math.nan)


def sensitivity(comparison: Comparison) -> list[Figure]:
  """Returns the metric on validation examples against each tuned setting."""
  metric, made = comparison.metric, []
  tried: dict[str, dict[str, list[tuple[float, Trial]]]] = {}
  for trial in comparison.trials:
    for name, value in _named(trial.method, trial.settings).items():
      if isinstance(value, int | float) and value > 0:
        trials = tried.setdefault(name, {}).setdefault(trial.method, [])
        trials.append((float(value), trial))
  for name in sorted(tried, key=lambda name: name != 'radius'):
    found = []
    for method in comparison.methods:
      if method not in tried[name]:
        continue
      best = _best(tried[name][method], comparison)
      runs = comparison.runs_of(method)
      chosen = [_named(method, run.settings).get(name) for run in runs]
      longest = max((steps for _, steps in best.values()), default=0)
      curve = {
        'method': method,
        'x': list(best),
        'y': [metric.scale * value for value, _ in best.values()],
        'size': [15 if x in chosen else 7 for x in best],
        'open': [steps < longest for _, steps in best.values()],
      }
      found += [curve] * bool(best)
    if any(len(curve['x']) > 1 for curve in found):
      words = name.replace('_', ' ')
      made += lines(
        f'Sensitivity to the {words}',
        'Best value on validation examples. The large marker is the chosen one.'
        ' Open markers: shorter trainings, not comparable with the others.',
        found,
        log=False,
        name=f'sensitivity-{words.replace(" ", "-")}',
        label=f'validation {metric.title}{_units(comparison)[0]}',
        x_label=words,
        x_log=True,
      )
  return made


def _named(method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
  """Returns settings, in which the radius of a method has this name."""
  radius = METHODS[method].radius if method in METHODS else None
  return {'radius' if k == radius else k: v for k, v in settings.items()}


def _best(
  trials: Sequence[tuple[float, Trial]], comparison: Comparison
) -> dict[float, tuple[float, int]]:
  """Returns metric and steps by value of a setting, means over seeds.

  Only the longest trials of a value count: those of successive halving have
  different lengths. Other settings are those with the best metric.
  """
  found = {}
  for value in sorted({value for value, _ in trials}):
    of_value = [trial for other, trial in trials if other == value]
    steps = max(trial.steps for trial in of_value)
    groups: dict[str, list[float]] = {}
    for trial in of_value:
      if trial.steps == steps and is_drawable(trial.validation_metric):
        key = repr(sorted(trial.settings.items()))
        groups.setdefault(key, []).append(trial.validation_metric)
    if groups:
      means = [float(np.mean(values)) for values in groups.values()]
      best = max(means, key=lambda x: comparison.metric.sign * x)
      found[value] = (best, steps)
  return found


def solutions(comparison: Comparison) -> list[Figure]:
  """Returns sharpness, landscape and Hessian spectrum at the end of runs."""
  made: list[Figure] = []
  for name in ('sam_sharpness', 'top_eigenvalue'):
    found = []
    for method in comparison.methods:
      runs = comparison.complete_runs(method)
      values = finite(run.sharpness.get(name) for run in runs)
      found.append(_over_seeds(method, [x for x in values if is_drawable(x)]))
    title = name.replace('_', ' ').capitalize().replace('Sam', 'SAM')
    made += rows(title, f'Mean. {_DOTS} Lower is flatter.', found)
  made += _planes(comparison)
  with_line = [run for run in comparison.runs if run.landscape]
  seed = min((run.seed for run in with_line), default=0)
  made += landscape(
    {run.method: run.landscape for run in with_line if run.seed == seed}
  )
  spectra = [
    {
      'method': name,
      'x': [row['eigenvalue'] for row in of],
      'y': [row['density'] or math.nan for row in of],
    }
    for name, of in comparison.spectra.items()
    if of and name in comparison.methods
  ]
  top = max(finite(y for of in spectra for y in of['y']), default=0.0)
  if top > 0:
    made += lines(
      'Spectrum of the Hessian',
      'At the solution of the first seed. Mass far to the right: sharp'
      ' directions. Negative eigenvalues: a saddle.',
      spectra,
      name='spectrum',
      label='density',
      x_label='eigenvalue of the Hessian',
      range=[math.log10(top) - 5, math.log10(top) + 0.3],
    )
  return made


def landscape(found: Mapping[str, Sequence[_Row]]) -> list[Figure]:
  """Returns the loss along a random direction, from `position` and `loss`."""
  curves_of = [
    {
      'method': name,
      'x': [row['position'] for row in of],
      'y': [row['loss'] for row in of],
    }
    for name, of in found.items()
    if sum(is_drawable(row['loss']) for row in of) > 1
  ]
  drawn, inner = [], []
  for curve in curves_of:
    quarter, losses = len(curve['y']) // 4, curve['y']
    drawn += filter(is_drawable, losses)
    inner += filter(is_drawable, losses[quarter : len(losses) - quarter])
  # Losses rise steeply far from the solutions: the inner halves are the range.
  low, high = min(drawn, default=0.0), max(inner, default=1.0)
  margin = 0.06 * (high - low) or 0.5
  return lines(
    'Loss along one random direction',
    'Training loss in evaluation mode. The direction is scaled filter by filter'
    ' to the weights. A wide curve is flat along it. Other directions and seeds'
    ' may look different. The axis is cut at the top.',
    curves_of,
    log=False,
    name='landscape',
    label='training loss',
    x_label='distance from the solution, in units of its weights',
    range=[low - margin, high + margin],
  )


def _planes(comparison: Comparison) -> list[Figure]:
  """Returns the loss in a plane through solutions, with common colours."""
  losses = [row['loss'] for of in comparison.planes.values() for row in of]
  drawn = [loss for loss in losses if is_drawable(loss) and loss > 0]
  made = []
  for method, of in comparison.planes.items():
    if not drawn or not of or method not in comparison.methods:
      continue
    by_place = {(row['x'], row['y']): row['loss'] for row in of}
    x, y = (sorted({row[axis] for row in of}) for axis in ('x', 'y'))
    table = [[by_place.get((a, b), math.nan) for a in x] for b in y]
    content = {
      'name': f'plane-{method}',
      'plane': table,
      'x': x,
      'y': y,
      'range': [math.log10(min(drawn)), math.log10(max(drawn))],
    }
    center = number(table[len(y) // 2][len(x) // 2])
    made += _figure(
      f'Loss around the solution of {label_of(method)}',
      'In a plane of two random directions, scaled filter by filter. The cross'
      ' is the solution. All planes have the same colours, on a log scale.',
      [(content | {'method': method}, f'{center} at the solution')],
      content,
    )
  return made
