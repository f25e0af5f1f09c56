"""The summary of a comparison: one row per method."""

import dataclasses
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from optax_sam.train.reports import paired
from optax_sam.train.reports.paired import Difference

if TYPE_CHECKING:
  from optax_sam.train.reports.results import Comparison


@dataclasses.dataclass(frozen=True)
class Summary:
  """One method's row of the results; missing numbers are None.

  Scores, sharpness and the fraction of `second_gradients` are means over the
  `seeds` complete runs; `unfinished` runs don't count. Times are relative to a
  step of the base optimizer: median, first and third quartile.
  """

  method: str
  is_base: bool
  seeds: int
  unfinished: int
  diverged: int
  score: float | None
  score_deviation: float | None
  difference: Difference
  second_gradients: float | None
  relative_time: float | None
  relative_time_quartiles: tuple[float, float] | None
  sharpness: dict[str, float | None]
  temporary_bytes: int | None


def finite(values: Iterable[float | None]) -> list[float]:
  """Returns the finite values as Python floats."""
  return [float(x) for x in values if x is not None and math.isfinite(x)]


def mean(values: Iterable[float | None]) -> float | None:
  """Returns the mean of the finite values, None if there are none."""
  kept = finite(values)
  return float(np.mean(kept)) if kept else None


def summarize(comparison: 'Comparison') -> list[Summary]:
  """Summarizes a comparison, one row per method, base optimizer first.

  Interrupted runs don't count; diverged ones do (`Comparison.scores`). The
  p-values are adjusted for the number of methods by Holm's correction.
  """
  found = {name: _difference(comparison, name) for name in comparison.methods}
  tested = {name: one.p_value for name, one in found.items()}
  tested = {name: p for name, p in tested.items() if p is not None}
  p_values = dict(zip(tested, paired.holm(list(tested.values())), strict=True))
  higher = comparison.metric.higher_is_better
  rows = []
  for name, one in found.items():
    more = {'adjusted_p_value': p_values.get(name), 'higher_is_better': higher}
    difference = dataclasses.replace(one, **more)
    rows.append(_summary(comparison, name, difference))
  return rows


def _difference(comparison: 'Comparison', method: str) -> Difference:
  base = comparison.scores(comparison.base)
  if method == comparison.base:
    return Difference({}, None, None, 'this is the base optimizer')
  if not base:
    reason = f'{comparison.base} has no complete run to compare with'
    return Difference({}, None, None, reason)
  return paired.paired_difference(
    comparison.scores(method),
    base,
    (comparison.test_values(method), comparison.test_values(comparison.base)),
  )


def _summary(
  comparison: 'Comparison', method: str, difference: Difference
) -> Summary:
  runs, complete = comparison.runs_of(method), comparison.complete_runs(method)
  scores = list(comparison.scores(method).values())
  timings = {timing.method: timing for timing in comparison.timings}
  timing = timings.get(method)
  relative = finite(timing.relative) if timing else []
  low, time, high = np.quantile(relative or [math.nan], (0.25, 0.5, 0.75))
  return Summary(
    method=method,
    is_base=method == comparison.base,
    seeds=len(scores),
    unfinished=len(runs) - len(complete),
    diverged=sum(run.diverged for run in runs),
    score=mean(scores),
    score_deviation=float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
    difference=difference,
    second_gradients=mean(run.second_gradient_share for run in complete),
    relative_time=float(time) if relative else None,
    relative_time_quartiles=(float(low), float(high)) if relative else None,
    sharpness={
      name: mean(run.sharpness.get(name) for run in complete)
      for name in comparison.measures
    },
    temporary_bytes=timing.temporary_bytes if timing else None,
  )
