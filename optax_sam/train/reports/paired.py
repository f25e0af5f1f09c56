"""Paired differences between methods over common seeds.

With a variance between seeds, Student's t decides. With one seed, or with equal
differences in all seeds, there is none to estimate; then a bootstrap over test
examples and seeds decides, if per-example values are known.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

CONFIDENCE = 0.95
# Resamples of the bootstrap. The smallest p-value is 2 / (_RESAMPLES + 1), so a
# difference may survive the correction for 100 methods.
_RESAMPLES = 4000
# Values of examples that are resampled at a time, for the memory.
_CHUNK = 2**22

STUDENT = 'Student t over seeds'
BOOTSTRAP = 'bootstrap over test examples and seeds'

# Values of single test examples by seed, in one order for all methods.
Examples = Mapping[int, Sequence[float]]


@dataclasses.dataclass(frozen=True)
class Difference:
  """Paired difference in a test metric to the base optimizer.

  Attributes:
    by_seed: The difference for each common seed.
    mean: The mean difference; None without a common seed.
    interval: 95% interval of the mean, not corrected for the number of methods.
    reason: The reason for a missing interval; empty if there is one.
    method: The test: `STUDENT`, `BOOTSTRAP`, or '' if there is none.
    p_value: Two-sided p-value of a difference of 0; None without a test.
    adjusted_p_value: The p-value after Holm's correction.
    higher_is_better: Whether a positive difference is an improvement.
  """

  by_seed: dict[int, float]
  mean: float | None
  interval: tuple[float, float] | None
  reason: str
  method: str = ''
  p_value: float | None = None
  adjusted_p_value: float | None = None
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
  def gain(self) -> float | None:
    """The mean difference, positive if the method is better than the base."""
    if self.mean is None or self.higher_is_better:
      return self.mean
    return -self.mean

  @property
  def verdict(self) -> str:
    """What the difference shows: better, worse, or nothing clear."""
    if self.significant:
      return 'better' if (self.gain or 0.0) > 0 else 'worse'
    return 'not tested' if self.interval is None else 'no clear difference'


def paired_difference(
  method: dict[int, float],
  base: dict[int, float],
  examples: tuple[Examples, Examples] = ({}, {}),
) -> Difference:
  """Compares two sets of scores, by seed, on their common seeds.

  Args:
    method: Scores of the method.
    base: Scores of the base optimizer.
    examples: Values of the test examples of both, whose means are the scores.
      They are used only if the seeds have no variance.
  """
  shared = [seed for seed in method if seed in base]
  by_seed = {seed: method[seed] - base[seed] for seed in shared}
  differences = np.array(list(by_seed.values()))
  if not by_seed:
    reason = 'no seed has a complete run of both'
    return Difference(by_seed, None, None, reason)
  center = float(differences.mean())
  largest = max(abs(x[seed]) for x in (method, base) for seed in shared)
  if len(shared) == 1:
    reason = 'one seed gives no estimate of the seed-to-seed variance'
  # Equal differences are an artifact of accuracies in whole examples, not a
  # variance of zero, and an interval of zero width would be wrong. Equality is
  # up to the rounding of float32, the dtype of accuracies.
  elif np.ptp(differences) <= 1e-6 * largest:
    reason = 'all seeds differ by the same amount: no variance to estimate'
  else:
    from scipy import stats

    test = stats.ttest_1samp(differences, 0.0)
    low, high = map(float, test.confidence_interval(CONFIDENCE))
    p_value = float(test.pvalue)
    return Difference(by_seed, center, (low, high), '', STUDENT, p_value)
  values = _of_examples(*examples, shared)
  if values is None:
    return Difference(by_seed, center, None, reason)
  if not values.any():
    reason = 'all test examples have the same values'
    return Difference(by_seed, center, None, reason, BOOTSTRAP, 1.0)
  return _bootstrap(by_seed, values)


def holm(p_values: Sequence[float]) -> list[float]:
  """Returns p-values adjusted for their number by Holm's method.

  The smallest of n is multiplied by n, the next one by n - 1, and so on; none
  is above 1 or below a smaller one's adjusted value. Rejecting those below 5%
  keeps the probability of any false rejection at 5%.
  """
  adjusted, largest = [0.0] * len(p_values), 0.0
  for rank, index in enumerate(np.argsort(p_values, kind='stable')):
    largest = max(largest, (len(p_values) - rank) * p_values[index])
    adjusted[index] = min(1.0, largest)
  return adjusted


def _of_examples(
  method: Examples, base: Examples, seeds: list[int]
) -> np.ndarray | None:
  """Returns the differences, (seeds, examples); None if some are unknown."""
  pairs = [(method.get(seed, ()), base.get(seed, ())) for seed in seeds]
  lengths = {len(values) for pair in pairs for values in pair}
  if len(lengths) > 1 or not max(lengths):
    return None
  found = np.array([np.subtract(one, other) for one, other in pairs])
  return found if np.isfinite(found).all() else None


def _bootstrap(by_seed: dict[int, float], values: np.ndarray) -> Difference:
  """Resamples seeds, and test examples, which are the same for all seeds."""
  seeds, examples = values.shape
  generator = np.random.default_rng(0)
  # Accuracies have few different columns, so drawing their numbers is fast.
  columns, counts = np.unique(values, axis=1, return_counts=True)
  chunk = max(1, _CHUNK // len(counts))
  means = []
  for first in range(0, _RESAMPLES, chunk):
    size = min(chunk, _RESAMPLES - first)
    of_examples = generator.multinomial(examples, counts / examples, size)
    of_seeds = generator.multinomial(seeds, [1 / seeds] * seeds, size)
    means.append(np.sum((of_examples @ columns.T) * of_seeds, axis=1))
  resampled = np.concatenate(means) / (seeds * examples)
  tail = (1 - CONFIDENCE) / 2
  low, high = np.quantile(resampled, (tail, 1 - tail))
  # Rounding must not decide on which side of 0 a mean of 0 is.
  below, above = np.sum(resampled <= 1e-12), np.sum(resampled >= -1e-12)
  p_value = min(1.0, 2 * (1 + min(below, above)) / (_RESAMPLES + 1))
  center, ends = math.fsum(by_seed.values()) / seeds, (float(low), float(high))
  return Difference(by_seed, center, ends, '', BOOTSTRAP, float(p_value))
