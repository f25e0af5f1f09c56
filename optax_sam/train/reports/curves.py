"""Metrics over the course of training: mean and range over seeds."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from optax_sam.train.reports.results import Comparison, Run
from optax_sam.train.reports.summary import mean

# Axes overflow near the largest float.
LARGEST = 1e30

_Row = Mapping[str, float]
_Points = dict[float, float]


def is_drawable(value: float | None) -> bool:
  """Whether a value is finite and not too large for an axis."""
  return value is not None and abs(value) <= LARGEST


def over_seeds(
  comparison: Comparison,
  method: str,
  rows_of: Callable[[Run], Iterable[_Row]],
  value: Callable[[_Row], float],
) -> dict[str, Any] | None:
  """Returns a curve for the page; long ones are averaged over spans of steps.

  A mean over a changing set of seeds would jump, so a curve ends where its
  first run diverges or stops. It is None if no step is common to all runs. The
  `value` of a row is NaN if the row lacks it.
  """
  runs = comparison.complete_runs(method) or comparison.runs_of(method)
  # The number of points bounds the size of the page.
  spans = max(20, min(100, 1000 // max(1, len(comparison.methods))))
  width = max((run.steps for run in comparison.runs), default=0) / spans
  points = [_averaged(_points(rows_of(run), value), width) for run in runs]
  steps = sorted(set(points[0]).intersection(*points)) if points else []
  if not steps:
    return None
  values = np.array([[of_run[step] for step in steps] for of_run in points])
  return {
    'method': method,
    'steps': steps,
    'gradients': _spent(steps, [_gradients(run) for run in runs]),
    'seconds': _spent(steps, [_seconds(comparison, run) for run in runs]),
    'y': _short(values.mean(axis=0)),
    'low': _short(values.min(axis=0)),
    'high': _short(values.max(axis=0)),
    'diverged': any(run.diverged for run in runs),
  }


def _short(values: Iterable[float]) -> list[float]:
  """Rounds values, for the size of the page."""
  return [float(f'{value:.5g}') for value in values]


def perturbed_fraction(run: Run) -> list[dict[str, float]]:
  """Returns rows of the `fraction` of steps with a perturbed gradient.

  It is exact for any logging interval, because the count is cumulative.
  """
  counts = _points(run.log, _get('second_gradients'))
  pairs = itertools.pairwise([(0.0, 0.0), *counts.items()])
  return [
    {'step': (one + two) / 2, 'fraction': (taken - before) / (two - one)}
    for (one, before), (two, taken) in pairs
    if two > one
  ]


def spent(
  comparison: Comparison, method: str
) -> tuple[float | None, float | None]:
  """Returns the gradients and the seconds of a complete run, means."""
  done = comparison.complete_runs(method)
  last = lambda points: max(points.values(), default=None)
  gradients = mean(last(_gradients(run)) for run in done)
  return gradients, mean(last(_seconds(comparison, run)) for run in done)


def _get(key: str) -> Callable[[_Row], float]:
  return lambda row: row.get(key, math.nan)


def _points(rows: Iterable[_Row], value: Callable[[_Row], float]) -> _Points:
  return {
    float(row['step']): float(found)
    for row in rows
    if is_drawable(found := value(row))
  }


def _averaged(points: _Points, width: float) -> _Points:
  if not points or len(points) * width <= max(points):
    return points
  spans: dict[float, list[float]] = {}
  for step, value in points.items():
    middle = (math.ceil(step / width) - 0.5) * width
    spans.setdefault(middle, []).append(value)
  return {middle: float(np.mean(values)) for middle, values in spans.items()}


def _gradients(run: Run) -> _Points:
  """Returns the gradient evaluations until each logged step."""
  taken = _points(run.log, _get('second_gradients'))
  return _points(run.log + run.evaluations, _get('gradients')) or {
    step: step + count for step, count in taken.items()
  }


def _seconds(comparison: Comparison, run: Run) -> _Points:
  """Returns the seconds of training until each logged step."""
  found = _points(run.log + run.evaluations, _get('seconds'))
  if found or not run.steps:
    return found
  timings = {timing.method: timing for timing in comparison.timings}
  timing = timings.get(run.method)
  each = mean(timing.milliseconds) if timing else None
  whole = run.seconds if each is None else each / 1e3 * run.steps
  return {float(run.steps): whole} if is_drawable(whole) else {}


def _spent(
  steps: Sequence[float], costs: Sequence[_Points]
) -> list[float] | None:
  """Interpolates what the steps cost, mean over runs; None if unknown."""
  if not all(costs):
    return None
  knots = [np.array(sorted(({0.0: 0.0} | one).items())).T for one in costs]
  each = [np.interp(steps, of_run[0], of_run[1]) for of_run in knots]
  return _short(np.mean(each, axis=0))
