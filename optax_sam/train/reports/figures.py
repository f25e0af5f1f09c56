"""Figures of the pages, as plain data: `figures.js` draws them.

A figure has a `name`, a `title`, a `caption`, a `label`, and one of

* `rows` from top to bottom: `method`, `center`, `text`, `verdict`, `bar`,
  values of the `seeds`, and whether a run `diverged`;
* `curves` over the steps (`curves.over_seeds`), or with `x` and `y`; with
  `x_label`, `x_log`, whether the y axis may be `log`, and for its range, values
  to `include`, the fraction of the curves to `skip`, `decades`;
* `points` of value and cost, or a `plane` with its `x`, `y` and `range`.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from optax_sam.train.reports import curves, formats
from optax_sam.train.reports.curves import Row, is_drawable
from optax_sam.train.reports.paired import Difference
from optax_sam.train.reports.results import Comparison, finite, mean

Figure = dict[str, Any]


def _figure(title: str, caption: str, **content: Any) -> Figure:
  return {
    'title': title[0].upper() + title[1:],
    'name': title.lower().replace(' ', '-'),
    'label': title,
    'caption': caption.strip(),
    **content,
  }


def _curves(
  title: str,
  caption: str,
  given: Iterable[Mapping[str, Any] | None],
  **content: Any,
) -> list[Figure]:
  """Returns a figure with a curve for each method; none without curves."""
  found = [curve for curve in given if curve and finite(curve['y'])]
  if any(curve.get('diverged') for curve in found):
    caption += ' A curve ends where its first run diverged.'
  content = {'skip': 0, 'include': [], 'log': True, **content, 'curves': found}
  return [_figure(title, caption, **content)] if found else []


def _units(comparison: Comparison) -> tuple[str, str]:
  """Returns the units of a value of the metric and of a difference."""
  return (', %', ', points') if comparison.metric.percent else ('', '')


def scores(
  comparison: Comparison, differences: Mapping[str, Difference]
) -> list[Figure]:
  """Returns the differences to the base, and the value against the cost."""
  metric, (percent, points) = comparison.metric, _units(comparison)
  scale = lambda values: [metric.scale * value for value in values]
  better = 'right' if metric.higher_is_better else 'left'
  rows, costs = [], []
  for name, found in differences.items():
    runs = comparison.runs_of(name)
    diverged = any(run.diverged for run in runs)
    if found.mean is not None:
      rows.append(
        {
          'method': name,
          'center': metric.scale * found.mean,
          'text': formats.gain(found.mean, metric),
          'bar': scale(found.interval) if found.interval else None,
          'seeds': scale(found.by_seed.values()),
          'verdict': found.verdict,
          'diverged': diverged,
        }
      )
    values = scale(comparison.scores(name).values())
    if values and not diverged:  # it would flatten the others
      costs.append(
        {
          'method': name,
          'y': mean(values),
          'error': float(np.std(values, ddof=1)) if values[1:] else 0.0,
          'gradients': mean(run.last('gradients') for run in runs),
          'seconds': mean(run.last('seconds') for run in runs),
        }
      )
  difference = _figure(
    f'difference to {formats.title(comparison.base)}',
    'Mean of the paired differences, with 95% interval. Small dots are seeds. '
    f'Better is to the {better}. Filled marker: a clear difference, corrected '
    'for the number of methods. An arrow points to a method outside of the '
    'axis.',
    name='differences',
    label=f'difference in test {metric.title}{points}',
    rows=rows,
  )
  tradeoff = _figure(
    f'test {metric.title} against cost',
    'Mean over seeds; bars: std over seeds. The dashed line joins the methods '
    'that no other beats in both.',
    name='tradeoff',
    label=f'test {metric.title}{percent}',
    sign=metric.sign,
    points=costs,
  )
  return [difference] * bool(rows) + [tradeoff] * (len(costs) > 1)


def learning_curves(comparison: Comparison) -> list[Figure]:
  """Returns losses and metrics on training and test examples."""
  metric, (percent, points) = comparison.metric, _units(comparison)
  test, train = (
    _value(f'{data}_{metric.name}', metric.scale) for data in ('test', 'train')
  )
  gap = lambda row: train(row) - test(row)
  evaluations, log = (lambda run: run.evaluations), (lambda run: run.log)
  name, early = metric.title + percent, {'skip': 0.25}  # not on the axis
  # By title: if the metric is the loss, there is one figure of it.
  shown: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    f'test {name}': (evaluations, test, {'name': 'test-metric', **early}),
    f'training {name}': (evaluations, train, {'name': 'train-metric', **early}),
    'test loss': (evaluations, _value('test_loss'), {}),
    'training loss': (log, _value('loss'), {}),
    f'training minus test {metric.title}{points}': (
      evaluations,
      gap,
      {'name': 'gap', 'include': [0]},
    ),
  }
  made = []
  for title, (rows_of, value, content) in shown.items():
    of = functools.partial(curves.over_seeds, rows_of=rows_of, value=value)
    found = [of(comparison, method) for method in comparison.methods]
    made += _curves(title, '', found, **content)
  return made


def _value(key: str, scale: float = 1.0) -> Callable[[Row], float]:
  return lambda row: scale * row.get(key, math.nan)


def sensitivity(comparison: Comparison) -> list[Figure]:
  """Returns the metric on validation examples against each tuned setting.

  Other settings are those with the best metric.
  """
  metric, made = comparison.metric, []
  best: dict[str, dict[str, dict[float, float]]] = {}
  for trial in comparison.trials:
    found = metric.sign * trial.validation_metric
    known = trial.method in comparison.methods and is_drawable(found)
    for name, x in (
      _named(trial.method, trial.settings).items() if known else ()
    ):
      points = best.setdefault(name, {}).setdefault(trial.method, {})
      points[x] = max(found, points.get(x, found))
  for name, of_methods in sorted(best.items()):
    shown = []
    for method, points in of_methods.items():
      runs = comparison.runs_of(method)
      chosen = [_named(method, run.settings).get(name) for run in runs]
      xs = sorted(points)
      shown.append(
        {
          'method': method,
          'x': xs,
          'y': [metric.scale * metric.sign * points[x] for x in xs],
          'size': [15 if x in chosen else 7 for x in xs],
        }
      )
    words = name.replace('_', ' ')
    if any(len(curve['x']) > 1 for curve in shown):
      made += _curves(
        f'Sensitivity to the {words}',
        'Best value on validation examples. The large marker is the chosen '
        'one.',
        shown,
        log=False,
        label=f'validation {metric.title}{_units(comparison)[0]}',
        x_label=words,
        x_log=True,
      )
  return made


def _named(method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
  """Returns settings, in which the radius of a method has this name."""
  radius = formats.ROWS[method].radius if method in formats.ROWS else None
  return {'radius' if k == radius else k: v for k, v in settings.items()}


def solutions(comparison: Comparison) -> list[Figure]:
  """Returns landscape and Hessian spectrum at the end of runs."""
  runs = sorted(comparison.runs, key=lambda run: -run.seed)
  lines = {run.method: run.landscape for run in runs if run.landscape}
  return [
    *_planes(comparison),
    *_curves(
      'Loss along one random direction',
      'Training loss in evaluation mode. The direction is scaled filter by '
      'filter to the weights. A wide curve is flat along it. Other directions '
      'and seeds may look different. The axis is cut at the top.',
      _of_columns(lines, 'position', 'loss'),
      log=False,
      name='landscape',
      label='training loss',
      x_label='distance from the solution, in units of its weights',
      skip=0.25,
    ),
    *_curves(
      'Spectrum of the Hessian',
      'At the solution of the first seed. Mass far to the right: sharp'
      ' directions. Negative eigenvalues: a saddle.',
      _of_columns(comparison.spectra, 'eigenvalue', 'density'),
      name='spectrum',
      label='density',
      x_label='eigenvalue of the Hessian',
      decades=5,
    ),
  ]


def _of_columns(
  found: Mapping[str, Sequence[Row]], x: str, y: str
) -> list[Mapping[str, Any]]:
  # 0 has no place on an axis that may be logarithmic.
  return [
    {
      'method': name,
      'x': [row[x] for row in of],
      'y': [row[y] or math.nan for row in of],
    }
    for name, of in found.items()
  ]


def _planes(comparison: Comparison) -> list[Figure]:
  """Returns the loss in a plane through solutions, with common colours."""
  losses = [row['loss'] for of in comparison.planes.values() for row in of]
  drawn = [math.log10(x) for x in losses if is_drawable(x) and x > 0]
  made = []
  for method, of in comparison.planes.items() if drawn else ():
    by_place = {(row['x'], row['y']): row['loss'] for row in of}
    x, y = (sorted({row[axis] for row in of}) for axis in ('x', 'y'))
    made.append(
      _figure(
        f'Loss around the solution of {formats.title(method)}',
        'In a plane of two random directions, scaled filter by filter. The '
        'cross is the solution. All planes have the same colours, on a log '
        'scale.',
        name=f'plane-{method}',
        plane=[[by_place.get((a, b), math.nan) for a in x] for b in y],
        x=x,
        y=y,
        range=[min(drawn), max(drawn)],
      )
    )
  return made
