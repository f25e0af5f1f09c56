"""Metrics over the course of training: mean and range over seeds."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from optax_sam.train.reports.results import Comparison, Run
from optax_sam.train.reports.summary import mean

SHARE_SPANS = 20
# Axes overflow near the largest float.
LARGEST = 1e30

_Points = dict[float, float]


@dataclasses.dataclass(frozen=True)
class Curve:
  """A metric over the course of training.

  Attributes:
    steps: The steps.
    gradients: Gradient evaluations until then, in units of a step of the base
      optimizer; None if they are unknown.
    seconds: Seconds of training until then; None if they are unknown.
    mean: Mean over seeds.
    low: Smallest value of any seed.
    high: Largest value of any seed.
    diverged: Whether a run of the method diverged.
  """

  steps: np.ndarray
  gradients: np.ndarray | None
  seconds: np.ndarray | None
  mean: np.ndarray
  low: np.ndarray
  high: np.ndarray
  diverged: bool

  def as_json(self, scale: float = 1.0) -> dict[str, Any]:
    """Returns the curve for the page, its values multiplied by `scale`."""
    return {
      'steps': self.steps,
      'gradients': self.gradients,
      'seconds': self.seconds,
      'y': self.mean * scale,
      'low': self.low * scale,
      'high': self.high * scale,
      'diverged': self.diverged,
    }


def logged(comparison: Comparison, method: str, key: str) -> Curve | None:
  """Returns a number of the log, averaged over spans of steps if it is long.

  Args:
    comparison: The measured comparison.
    method: Name of the method.
    key: Name of the number.

  Returns:
    The curve; None if no step is common to all runs.
  """
  runs = _runs(comparison, method)
  width = comparison.total_steps / _spans(comparison)
  points = [_averaged(_points(run.log, key), width) for run in runs]
  return _over_seeds(comparison, runs, points)


def evaluated(
  comparison: Comparison,
  method: str,
  value: Callable[[Mapping[str, float]], float | None],
) -> Curve | None:
  """Returns a number of the evaluations.

  Args:
    comparison: The measured comparison.
    method: Name of the method.
    value: Maps a row to the number; None if the row lacks it.

  Returns:
    The curve; None if no step is common to all runs.
  """
  runs = _runs(comparison, method)
  points = [
    {
      float(row['step']): float(found)
      for row in run.evaluations
      if (found := value(row)) is not None and is_drawable(found)
    }
    for run in runs
  ]
  return _over_seeds(comparison, runs, points)


def perturbed_fraction(comparison: Comparison, method: str) -> Curve | None:
  """Returns the fraction of steps with a perturbed gradient, by span of steps.

  It is exact for any logging interval, because the count is cumulative.

  Args:
    comparison: The measured comparison.
    method: Name of the method.

  Returns:
    The fraction, between 0 and 1, at the middle of each span.
  """
  runs = _runs(comparison, method)
  counts = [_points(run.log, 'second_gradients') for run in runs]
  if not counts or not all(counts):
    return None
  spans = min(SHARE_SPANS, *map(len, counts))
  edges = np.linspace(0, min(max(of_run) for of_run in counts), spans + 1)
  middles = (edges[:-1] + edges[1:]) / 2
  fractions = []
  for of_run in counts:
    steps, taken = [0.0, *of_run], [0.0, *of_run.values()]
    fraction = np.diff(np.interp(edges, steps, taken)) / np.diff(edges)
    fractions.append(dict(zip(middles, fraction, strict=True)))
  return _over_seeds(comparison, runs, fractions)


def is_drawable(value: float) -> bool:
  """Whether a value is finite and not too large for an axis."""
  return abs(value) <= LARGEST


def gradients_until(run: Run) -> _Points:
  """Returns the gradient evaluations of a run until each logged step."""
  rows = run.log + run.evaluations
  found = _points(rows, 'gradients')
  taken = _points(run.log, 'second_gradients')
  found = found or {step: step + count for step, count in taken.items()}
  return dict(sorted(({0.0: 0.0} | found).items())) if found else {}


def seconds_until(comparison: Comparison, run: Run) -> _Points:
  """Returns the seconds of training of a run until each logged step."""
  found = _points(run.log + run.evaluations, 'seconds')
  if not found and run.steps:
    timed = [
      timing for timing in comparison.timings if timing.method == run.method
    ]
    each = mean(timed[0].milliseconds) if timed else None
    whole = run.seconds if each is None else each / 1e3 * run.steps
    found = {float(run.steps): whole} if is_drawable(whole) else {}
  return dict(sorted(({0.0: 0.0} | found).items())) if found else {}


def _spans(comparison: Comparison) -> int:
  """Returns the number of points of a curve, which bounds the page's size."""
  return max(20, min(100, 1000 // max(1, len(comparison.methods))))


def _runs(comparison: Comparison, method: str) -> list[Run]:
  runs = comparison.runs_of(method)
  return [run for run in runs if comparison.is_complete(run)] or runs


def _points(rows: Sequence[Mapping[str, float]], key: str) -> _Points:
  return {
    float(row['step']): float(row[key])
    for row in rows
    if row.get(key) is not None and is_drawable(row[key])
  }


def _averaged(points: _Points, width: float) -> _Points:
  if not points or len(points) * width <= max(points):
    return points
  spans: dict[int, list[float]] = {}
  for step, value in points.items():
    spans.setdefault(int(np.ceil(step / width)), []).append(value)
  return {
    (span - 0.5) * width: float(np.mean(values))
    for span, values in spans.items()
  }


def _over_seeds(
  comparison: Comparison, runs: Sequence[Run], points: Sequence[_Points]
) -> Curve | None:
  """Combines the points that all runs have.

  A mean over a changing set of seeds would jump, so a curve ends where its
  first run diverges or stops.
  """
  steps = sorted(set(points[0]).intersection(*points)) if points else []
  if not steps:
    return None
  values = np.array([[of_run[step] for step in steps] for of_run in points])
  return Curve(
    steps=np.array(steps),
    gradients=_spent(steps, [gradients_until(run) for run in runs]),
    seconds=_spent(steps, [seconds_until(comparison, run) for run in runs]),
    mean=values.mean(axis=0),
    low=values.min(axis=0),
    high=values.max(axis=0),
    diverged=any(run.diverged for run in runs),
  )


def _spent(
  steps: Sequence[float], until: Sequence[_Points]
) -> np.ndarray | None:
  """Interpolates what the steps cost, mean over runs."""
  if not all(until):
    return None
  each = [np.interp(steps, list(cost), list(cost.values())) for cost in until]
  return np.mean(each, axis=0)
