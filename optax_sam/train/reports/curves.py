"""Metrics over the course of training: mean and range over seeds."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from optax_sam.train.reports.results import Comparison, Run

# Axes overflow near the largest float.
LARGEST = 1e30

Row = Mapping[str, float]


def is_drawable(value: float | None) -> bool:
  """Whether a value is finite and not too large for an axis."""
  return value is not None and abs(value) <= LARGEST


def over_seeds(
  comparison: Comparison,
  method: str,
  rows_of: Callable[[Run], Iterable[Row]],
  value: Callable[[Row], float],
) -> dict[str, Any] | None:
  """Returns a curve for the page; neighbours in a long one are averaged.

  A mean over a changing set of seeds would jump, so a curve ends where its
  first run diverges. It is None if no step is common to all runs. The `value`
  of a row is NaN if the row lacks it.
  """
  runs = comparison.runs_of(method)
  points = [
    {
      row['step']: [
        *(row.get(x, math.nan) for x in ('gradients', 'seconds')),
        y,
      ]
      for row in rows_of(run)
      if is_drawable(y := value(row))
    }
    for run in runs
  ]
  steps = sorted(set(points[0]).intersection(*points))
  if not steps:
    return None
  table = np.array([[[x, *of_run[x]] for x in steps] for of_run in points])
  # The number of points bounds the size of the page.
  spans = max(20, min(100, 1000 // len(comparison.methods)))
  parts = np.array_split(table, min(spans, len(steps)), axis=1)
  table = np.stack([part.mean(axis=1) for part in parts], axis=1)
  step, gradients, seconds, center = map(_short, table.mean(axis=0).T)
  return {
    'method': method,
    'steps': step,
    'gradients': gradients,
    'seconds': seconds,
    'y': center,
    'low': _short(table[..., 3].min(axis=0)),
    'high': _short(table[..., 3].max(axis=0)),
    'diverged': any(run.diverged for run in runs),
  }


def _short(values: Iterable[float]) -> list[float] | None:
  """Rounds values, for the size of the page; None if they are unknown."""
  found = [float(f'{value:.5g}') for value in values]
  return found if all(map(math.isfinite, found)) else None
