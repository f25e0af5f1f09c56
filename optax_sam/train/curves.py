"""Training metrics over steps: mean and range over the seeds of a method."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from optax_sam.train.results import Comparison, Run

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
  """

  steps: np.ndarray
  mean: np.ndarray
  low: np.ndarray
  high: np.ndarray


def training_loss(comparison: Comparison, method: str) -> Curve | None:
  """Returns the training loss, averaged over spans of steps if it is long."""
  runs = _runs(comparison, method)
  return _over_seeds(
    [_averaged(run.log, 'loss', comparison.total_steps) for run in runs]
  )


def test_accuracy(comparison: Comparison, method: str) -> Curve | None:
  """Returns the test accuracy at the evaluations."""
  runs = _runs(comparison, method)
  return _over_seeds(
    [_points(run.evaluations, 'test_accuracy') for run in runs]
  )


def second_gradient_share(comparison: Comparison, method: str) -> Curve | None:
  """Returns the share of steps with a second gradient, in spans of steps.

  The cumulative count gives it exactly, however rarely rows are logged.

  Args:
    comparison: What was measured.
    method: Name of the method.

  Returns:
    The share, between 0 and 1, at the middle of each span.
  """
  shares = []
  for run in _runs(comparison, method):
    counts = _points(run.log, 'second_gradients')
    if not counts:
      continue
    steps = np.array([0.0, *counts])
    taken = np.array([0.0, *counts.values()])
    spans = min(SHARE_SPANS, len(counts))
    edges = np.linspace(0, steps[-1], spans + 1)
    width = steps[-1] / spans
    share = np.diff(np.interp(edges, steps, taken)) / width
    middles = (edges[:-1] + edges[1:]) / 2
    shares.append(dict(zip(middles, share, strict=True)))
  return _over_seeds(shares)


def _runs(comparison: Comparison, method: str) -> list[Run]:
  runs = comparison.runs_of(method)
  # A mean over a changing set of seeds would jump where a run was stopped.
  return [run for run in runs if comparison.is_complete(run)] or runs


def _points(rows: Sequence[dict[str, float]], key: str) -> dict[float, float]:
  return {
    float(row['step']): float(row[key])
    for row in rows
    if key in row and np.isfinite(row[key])
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


def _over_seeds(runs: Sequence[dict[float, float]]) -> Curve | None:
  steps = sorted(set().union(*runs)) if runs else []
  if not steps:
    return None
  values = np.ma.masked_invalid(
    [[run.get(step, np.nan) for step in steps] for run in runs]
  )
  parts = (values.mean(axis=0), values.min(axis=0), values.max(axis=0))
  return Curve(np.array(steps), *map(np.asarray, parts))
