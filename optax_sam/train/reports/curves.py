"""Training metrics over steps: mean and range over the seeds of a method."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from optax_sam.train.reports.results import Comparison, Run
from optax_sam.train.reports.svg import is_drawable

SPANS = 40
SHARE_SPANS = 20


@dataclasses.dataclass(frozen=True)
class Curve:
  """A metric over steps.

  Attributes:
    steps: The steps.
    mean: Mean over seeds.
    low: Smallest value of any seed.
    high: Largest value of any seed.
    diverged: Whether a run of the method diverged.
  """

  steps: np.ndarray
  mean: np.ndarray
  low: np.ndarray
  high: np.ndarray
  diverged: bool


def training_loss(comparison: Comparison, method: str) -> Curve | None:
  """Returns the training loss, averaged over spans of steps if it is long."""
  runs = _runs(comparison, method)
  spans = [_averaged(run.log, 'loss', comparison.total_steps) for run in runs]
  return _over_seeds(runs, spans)


def test_accuracy(comparison: Comparison, method: str) -> Curve | None:
  """Returns the test accuracy at the evaluations."""
  runs = _runs(comparison, method)
  return _over_seeds(
    runs, [_points(run.evaluations, 'test_accuracy') for run in runs]
  )


def second_gradient_share(comparison: Comparison, method: str) -> Curve | None:
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
  return _over_seeds(runs, fractions)


def _runs(comparison: Comparison, method: str) -> list[Run]:
  runs = comparison.runs_of(method)
  return [run for run in runs if comparison.is_complete(run)] or runs


def _points(rows: Sequence[dict[str, float]], key: str) -> dict[float, float]:
  return {
    float(row['step']): float(row[key])
    for row in rows
    if key in row and is_drawable(row[key])
  }


def _averaged(
  rows: Sequence[dict[str, float]], key: str, total_steps: int
) -> dict[float, float]:
  points = _points(rows, key)
  if len(points) <= SPANS:
    return points
  width = total_steps / SPANS
  spans: dict[int, list[float]] = {}
  for step, value in points.items():
    spans.setdefault(int(np.ceil(step / width)), []).append(value)
  return {
    (span - 0.5) * width: float(np.mean(values))
    for span, values in spans.items()
  }


def _over_seeds(
  runs: Sequence[Run], points: Sequence[dict[float, float]]
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
    mean=values.mean(axis=0),
    low=values.min(axis=0),
    high=values.max(axis=0),
    diverged=any(run.diverged for run in runs),
  )
