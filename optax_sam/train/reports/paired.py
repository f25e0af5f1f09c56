"""Paired differences between methods over common seeds.

With a variance between seeds, Student's t decides. With one seed, or with equal
differences in all seeds, there is none to estimate; then a bootstrap over test
examples and seeds decides, if per-example values are known.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from optax_sam.train.reports.results import Comparison

CONFIDENCE = 0.95
# Resamples of the bootstrap. The smallest p-value is 2 / (_RESAMPLES + 1), so a
# difference may survive the correction for 100 methods.
_RESAMPLES = 4000

# Values of single test examples by seed, in one order for all methods.
Examples = Mapping[int, Sequence[float]]


@dataclasses.dataclass(frozen=True)
class Difference:
  """Paired difference in a test metric to the base optimizer."""

  by_seed: dict[int, float]  # common seeds only
  mean: float | None = None
  # At 95%, of the mean, not corrected for the number of methods.
  interval: tuple[float, float] | None = None
  reason: str = ''  # of a missing interval
  p_value: float | None = None  # two-sided, of a difference of 0
  adjusted_p_value: float | None = None  # by Holm's correction
  higher_is_better: bool = True

  @property
  def significant(self) -> bool:
    """Whether the difference is significant at 5%, after any correction.

    Without a correction this is whether the interval excludes zero.
    """
    if self.adjusted_p_value is not None:
      return self.adjusted_p_value < 1 - CONFIDENCE
    low, high = self.interval or (0, 0)
    return not low <= 0 <= high

  @property
  def verdict(self) -> str:
    """The conclusion: better, worse, or no clear difference."""
    if self.significant:
      is_positive = (self.mean or 0.0) > 0
      return 'better' if is_positive == self.higher_is_better else 'worse'
    return 'not tested' if self.interval is None else 'no clear difference'


def paired_difference(
  method: dict[int, float],
  base: dict[int, float],
  examples: tuple[Examples, Examples] = ({}, {}),
) -> Difference:
  """Compares scores by seed of a method and the base on their common seeds.

  Values of the test examples of both, whose means are the scores, are used only
  if the seeds have no variance.
  """
  by_seed = {seed: method[seed] - base[seed] for seed in method if seed in base}
  if not by_seed:
    return Difference({}, reason='no seed has a run of both')
  values = np.array(list(by_seed.values()))
  center = float(values.mean())
  largest = max(abs(x[seed]) for x in (method, base) for seed in by_seed)
  if len(by_seed) == 1:
    reason = 'one seed gives no estimate of the seed-to-seed variance'
  # Equal differences are an artifact of accuracies in whole examples, not a
  # variance of zero, and an interval of zero width would be wrong. Equality is
  # up to the rounding of float32, the dtype of accuracies.
  elif np.ptp(values) <= 1e-6 * largest:
    reason = 'all seeds differ by the same amount: no variance to estimate'
  else:
    from scipy import stats

    test = stats.ttest_1samp(values, 0.0)
    low, high = map(float, test.confidence_interval(CONFIDENCE))
    p_value = float(test.pvalue)
    return Difference(by_seed, center, (low, high), '', p_value)
  pairs = [[of.get(seed, ()) for of in examples] for seed in by_seed]
  sizes = {len(values) for pair in pairs for values in pair}
  if len(sizes) > 1 or not max(sizes) or not np.isfinite(pairs).all():
    return Difference(by_seed, center, None, reason)
  values = np.subtract.reduce(pairs, axis=1)  # (seeds, examples)
  if values.any():
    interval, p_value = _bootstrap(values)
    return Difference(by_seed, center, interval, '', p_value)
  reason = 'all test examples have the same values'
  return Difference(by_seed, center, None, reason, 1.0)


def differences(comparison: Comparison) -> dict[str, Difference]:
  """Returns the differences of all methods to the base, which comes first.

  Diverged runs count (`Comparison.scores`). The p-values are adjusted for the
  number of methods by Holm's correction.
  """
  base, found = comparison.base, {}
  for name in comparison.methods:
    runs = [comparison.runs_of(one) for one in (name, base)]
    one, other = (
      {run.seed: run.test_values for run in of if not run.diverged}
      for of in runs
    )
    found[name] = paired_difference(
      comparison.scores(name), comparison.scores(base), (one, other)
    )
  if base in found:
    found[base] = Difference({}, reason='this is the base optimizer')
  tested = {x: p for x, one in found.items() if (p := one.p_value) is not None}
  adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
  return {
    name: dataclasses.replace(
      one,
      adjusted_p_value=adjusted.get(name),
      higher_is_better=comparison.metric.higher_is_better,
    )
    for name, one in found.items()
  }


def holm(p_values: Sequence[float]) -> list[float]:
  """Returns p-values adjusted for their number by Holm's method.

  The smallest of n is multiplied by n, the next one by n - 1, and so on; none
  is above 1 or below a smaller one's adjusted value. Rejecting those below 5%
  keeps the probability of any false rejection at 5%.
  """
  order = np.argsort(p_values, kind='stable')
  factors = np.arange(len(order), 0, -1)
  adjusted = np.zeros(len(order))
  scaled = factors * np.asarray(p_values)[order]
  adjusted[order] = np.minimum(1, np.maximum.accumulate(scaled))
  return adjusted.tolist()


def _bootstrap(values: np.ndarray) -> tuple[tuple[float, float], float]:
  """Resamples seeds and examples; returns the interval and the p-value."""
  seeds, examples = values.shape
  draw = np.random.default_rng(0).multinomial
  # Accuracies have few different columns, so drawing their numbers is fast.
  columns, counts = np.unique(values, axis=1, return_counts=True)
  resampled = [
    draw(seeds, [1 / seeds] * seeds)
    @ columns
    @ draw(examples, counts / examples)
    for _ in range(_RESAMPLES)
  ]
  means = np.array(resampled) / (seeds * examples)
  low, high = np.quantile(means, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
  # Rounding must not decide on which side of 0 a mean of 0 is.
  tail = min(np.sum(means <= 1e-12), np.sum(means >= -1e-12))
  p_value = min(1.0, 2 * (1 + int(tail)) / (_RESAMPLES + 1))
  return (float(low), float(high)), p_value
