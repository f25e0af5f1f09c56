"""Figures of the search for settings: the metric against each setting."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from optax_sam.catalog import METHODS
from optax_sam.train.reports import formats
from optax_sam.train.reports.curves import is_drawable
from optax_sam.train.reports.display import Style
from optax_sam.train.reports.figures import Figure, axis
from optax_sam.train.reports.results import Comparison, Trial
from optax_sam.train.reports.score_figures import value_label
from optax_sam.train.reports.summary import finite, mean

# Values of an axis that are written out, if they are as far apart as this.
_TICKS, _FACTOR = 8, 1.6


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
    longest = max(trial.steps for trial in trials)
    traces.append(
      {
        'type': 'scatter',
        'legendgroup': method,
        'mode': 'lines+markers',
        'x': list(best),
        'y': [scale * value for value, _ in best.values()],
        'line': {'color': style.color, 'dash': style.dash, 'width': 2},
        'marker': {
          'color': style.color,
          'opacity': 1,
          'symbol': [
            style.symbol if steps == longest else f'{style.symbol}-open'
            for _, steps in best.values()
          ],
          'size': [15 if value == chosen else 7 for value in best],
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
    f'Best value on the validation examples for each {name} that was tried.'
    ' The large marker is the chosen one. Open markers: shorter trainings, not'
    ' comparable with the others.',
    f'Chosen {name}: {"; ".join(words)}.',
    {
      'traces': traces,
      'end_labels': True,
      'layout': {
        'xaxis': axis(name, logarithmic=True) | _ticks(sorted(values)),
        'yaxis': axis(value_label(comparison, 'validation')),
      },
    },
  )


def _setting(method: str, settings: Mapping[str, object], name: str) -> Any:
  if name == 'radius' and method in METHODS:
    name = METHODS[method].radius or name
  return settings.get(name)


def _ticks(values: Sequence[float]) -> dict[str, Any]:
  """Returns the range of an axis, and the values as ticks if they fit."""
  low, high = math.log10(values[0]), math.log10(values[-1])
  found = {'range': [low - 0.08, high + 0.08], 'tickformat': '.3~g'}
  ratios = [b / a for a, b in itertools.pairwise(values)]
  if len(values) <= _TICKS and min(ratios) >= _FACTOR:
    return found | {'tickvals': values}
  return found


def _best_by_value(
  trials: Sequence[Trial], name: str, comparison: Comparison
) -> dict[float, tuple[float, int]]:
  """Returns metric and steps by value of a setting, means over seeds.

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
      found[value] = (choose(shown), longest)
  return found
