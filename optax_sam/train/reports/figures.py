"""Figures of the pages, as plain data: `figures.js` draws them.

A figure has a `name`, a `title`, a `caption`, an `alternative` text, and one of

* `rows` from top to bottom: `method`, `center`, and optionally `text`,
  `verdict`, `bar`, values of the `seeds`, and whether a run `diverged`; with a
  `label`, a vertical line `reference` and a `scale` of the values;
* `curves` over the steps (`curves.over_seeds`), or with `x` and `y`; with
  `label`, `x_label`, `x_log`, whether the y axis may be `log`, and for its
  range, values to `include`, the fraction of the curves to `skip`, `decades`;
* `points` of value and cost, or a `plane` with its `x`, `y` and `range`.
"""

import collections
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from optax_sam.catalog import METHODS
from optax_sam.train.reports import curves
from optax_sam.train.reports.curves import is_drawable
from optax_sam.train.reports.display import title as label_of
from optax_sam.train.reports.formats import duration, gain, number
from optax_sam.train.reports.results import Comparison, Run
from optax_sam.train.reports.summary import Summary, finite, mean

_DOTS = 'Small dots are seeds.'
_LOGGED = ('learning_rate', 'gradient_norm', 'update_norm', 'parameter_norm')
_LOG = operator.attrgetter('log')

Figure = dict[str, Any]
_Row = Mapping[str, float]


def rows(
  title: str, caption: str, given: Iterable[Mapping[str, Any]], **content: Any
) -> list[Figure]:
  """Returns a figure with a row for each method; none without rows."""
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
  return _figure(title, caption, found, words, content)


def lines(
  title: str,
  caption: str,
  found: Iterable[Mapping[str, Any] | None],
  **content: Any,
) -> list[Figure]:
  """Returns a figure with a curve for each method; none without curves."""
  shown = [curve for curve in found if curve and finite(curve['y'])]
  if any(curve.get('diverged') for curve in shown):
    caption += ' A curve ends where its first run diverged.'
  content = {'skip': 0, 'include': [], 'log': True, **content, 'curves': shown}
  words = [number(curve['y'][-1]) for curve in shown]
  return _figure(title, caption, shown, words, content)


def _figure(
  title: str,
  caption: str,
  found: Sequence[Mapping[str, Any]],
  words: Sequence[str],
  content: Figure,
) -> list[Figure]:
  text = '; '.join(
    f'{label_of(one["method"])} {word}'
    for one, word in zip(found, words, strict=True)
  )
  figure = {
    'title': title[0].upper() + title[1:],
    'name': title.lower().replace(' ', '-'),
    'label': title,
    'caption': caption.strip(),
    'alternative': f'{title}: {text}.',
  }
  return [figure | content] if found else []


def scores(comparison: Comparison, summary: Sequence[Summary]) -> list[Figure]:
  """Returns differences to the base, value against cost, and times."""
  metric = comparison.metric
  percent, points = _units(comparison)
  better = 'right' if metric.higher_is_better else 'left'
  differences, steps, costs = [], [], []
  for row in summary:
    name, found = {'method': row.method}, row.difference
    seeds, diverged = list(found.by_seed.values()), row.diverged > 0
    center = {'center': found.mean, 'text': gain(found.mean, metric)}
    more = {'bar': found.interval, 'seeds': seeds, 'verdict': found.verdict}
    differences.append(name | center | more | {'diverged': diverged})
    step = {'center': row.relative_time, 'bar': row.relative_time_quartiles}
    steps.append(name | step)
    # A diverged method would flatten the others.
    if row.score is not None and not diverged:
      gradients, seconds = curves.spent(comparison, row.method)
      cost = {'gradients': gradients, 'seconds': seconds}
      error = metric.scale * (row.score_deviation or 0.0)
      costs.append(
        name | cost | {'y': metric.scale * row.score, 'error': error}
      )
  words = [f'{number(one["y"])} in {number(one["seconds"])} s' for one in costs]
  label = f'test {metric.title}{percent}'
  tradeoff = {'name': 'tradeoff', 'label': label, 'sign': metric.sign}
  return [
    *rows(
      f'difference to {label_of(comparison.base)}',
      f'Mean of the paired differences, with 95% interval. {_DOTS} Better is to'
      f' the {better}. Filled marker: a clear difference, corrected for the'
      ' number of methods. An arrow points to a method outside of the axis.',
      differences,
      name='differences',
      label=f'difference in test {metric.title}{points}',
      reference=0,
      scale=metric.scale,
    ),
    *_figure(
      f'test {metric.title} against cost',
      'Mean over seeds; bars: std over seeds. The dashed line joins the methods'
      ' that no other beats in both.',
      costs,
      words,
      tradeoff | {'points': costs},
    ),
    *rows(
      'time per step, base optimizer = 1',
      'In the same round: median and quartiles.',
      steps,
      name='step-time',
      reference=1,
    ),
    *_of_runs(
      comparison, 'total time, s', '', lambda run: run.seconds, duration
    ),
  ]


def _units(comparison: Comparison) -> tuple[str, str]:
  """Returns the units of a value of the metric and of a difference."""
  return (', %', ', points') if comparison.metric.percent else ('', '')


def _of_runs(
  comparison: Comparison,
  title: str,
  caption: str,
  value: Callable[[Run], float | None],
  text: Callable[[float], str] = number,
) -> list[Figure]:
  found = []
  for method in comparison.methods:
    values = map(value, comparison.complete_runs(method))
    seeds = [seed for seed in values if seed is not None and is_drawable(seed)]
    if seeds:
      center = sum(seeds) / len(seeds)
      row = {'method': method, 'center': center, 'text': text(center)}
      found.append(row | {'seeds': seeds if len(seeds) > 1 else []})
  if any(row['seeds'] for row in found):
    caption = f'Mean. {_DOTS} {caption}'
  return rows(title, caption, found) if len(found) > 1 else []


def learning_curves(comparison: Comparison) -> list[Figure]:
  """Returns losses and metrics on training and test examples."""
  metric, (percent, points) = comparison.metric, _units(comparison)
  test, train = (
    _value(f'{data}_{metric.name}', metric.scale) for data in ('test', 'train')
  )
  gap = lambda row: train(row) - test(row)
  name, gap_name = metric.title + percent, metric.title + points
  loss = _course(comparison, 'test loss', _value('test_loss'))
  early = {'skip': 0.25}  # not in the range of the axis
  return [
    *_course(comparison, f'test {name}', test, name='test-metric', **early),
    *loss[metric.name == 'loss' :],
    *_course(comparison, 'training loss', _value('loss'), _LOG),
    *_course(
      comparison, f'training {name}', train, name='train-metric', **early
    ),
    *_course(
      comparison,
      f'training minus test {gap_name}',
      gap,
      name='gap',
      include=[0],
    ),
  ]


def course(comparison: Comparison) -> list[Figure]:
  """Returns the fraction of perturbed gradients, learning rate and norms."""
  made = _course(
    comparison,
    'perturbed gradients, % of steps',
    _value('fraction', 100),
    curves.perturbed_fraction,
    name='perturbed-gradients',
    include=(0, 100),
  )
  for key in _LOGGED:
    title = key.replace('_', ' ')
    made += _course(comparison, title, _value(key), _LOG, log=False)
  return made


def _course(
  comparison: Comparison,
  title: str,
  value: Callable[[_Row], float],
  rows_of: Callable[[Run], Iterable[_Row]] = lambda run: run.evaluations,
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
  """Returns the metric on validation examples against each tuned setting.

  Only the longest trials of a value count: those of successive halving have
  different lengths. Other settings are those with the best mean over seeds.
  """
  metric, made = comparison.metric, []
  groups: dict[tuple[str, str, float], Any] = collections.defaultdict(
    lambda: collections.defaultdict(list)
  )
  for trial in comparison.trials:
    key, y = (trial.steps, repr(trial.settings)), trial.validation_metric
    for name, x in _named(trial.method, trial.settings).items():
      if isinstance(x, int | float) and x > 0 and is_drawable(y):
        groups[name, trial.method, float(x)][key].append(metric.sign * y)
  points: dict[tuple[str, str], Any] = collections.defaultdict(list)
  for (name, method, x), of in sorted(groups.items()):
    steps, best = max((steps, mean(ys) or 0.0) for (steps, _), ys in of.items())
    points[name, method].append((x, metric.scale * metric.sign * best, steps))
  for name in sorted({name for name, _ in points}):
    found = []
    for method in comparison.methods:
      if (name, method) in points:
        xs, ys, steps = zip(*points[name, method], strict=True)
        runs = comparison.runs_of(method)
        chosen = [_named(method, run.settings).get(name) for run in runs]
        size = [15 if x in chosen else 7 for x in xs]
        shorter = [one < max(steps) for one in steps]
        curve = {'method': method, 'x': xs, 'y': ys}
        found.append({**curve, 'size': size, 'open': shorter})
    words = name.replace('_', ' ')
    if any(len(curve['x']) > 1 for curve in found):
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


def solutions(comparison: Comparison) -> list[Figure]:
  """Returns sharpness, landscape and Hessian spectrum at the end of runs."""
  made: list[Figure] = []
  for name, title in comparison.measures.items():
    value = lambda run, name=name: run.sharpness.get(name)
    if not name.endswith('_error'):
      made += _of_runs(comparison, title, 'Lower is flatter.', value)
  made += _planes(comparison)
  runs = sorted(comparison.runs, key=lambda run: -run.seed)
  of_first = {run.method: run.landscape for run in runs if run.landscape}
  made += _landscape(of_first)
  spectra = [
    {
      'method': name,
      'x': [row['eigenvalue'] for row in of],
      'y': [row['density'] or math.nan for row in of],
    }
    for name, of in comparison.spectra.items()
    if name in comparison.methods
  ]
  return made + lines(
    'Spectrum of the Hessian',
    'At the solution of the first seed. Mass far to the right: sharp'
    ' directions. Negative eigenvalues: a saddle.',
    spectra,
    name='spectrum',
    label='density',
    x_label='eigenvalue of the Hessian',
    decades=5,
  )


def _landscape(found: Mapping[str, Sequence[_Row]]) -> list[Figure]:
  """Returns the loss along a random direction, from `position` and `loss`."""
  shown = [
    {
      'method': name,
      'x': [row['position'] for row in of],
      'y': [row['loss'] for row in of],
    }
    for name, of in found.items()
  ]
  return lines(
    'Loss along one random direction',
    'Training loss in evaluation mode. The direction is scaled filter by filter'
    ' to the weights. A wide curve is flat along it. Other directions and seeds'
    ' may look different. The axis is cut at the top.',
    shown,
    log=False,
    name='landscape',
    label='training loss',
    x_label='distance from the solution, in units of its weights',
    skip=0.25,
  )


def _planes(comparison: Comparison) -> list[Figure]:
  """Returns the loss in a plane through solutions, with common colours."""
  losses = [row['loss'] for of in comparison.planes.values() for row in of]
  drawn = [loss for loss in losses if is_drawable(loss) and loss > 0]
  made = []
  for method, of in comparison.planes.items():
    if not drawn or not of:
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
      [{'method': method}],
      [f'{center} at the solution'],
      content,
    )
  return made
