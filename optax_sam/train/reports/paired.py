"""Paired differences between methods over common seeds."""

import dataclasses

import numpy as np

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Difference:
  """Paired difference in test accuracy to the base optimizer.

  Attributes:
    by_seed: The difference for each common seed.
    mean: The mean difference; None without a common seed.
    interval: 95% Student-t interval of the mean; None if it does not exist.
    reason: The reason for a missing interval; empty if there is one.
  """

  by_seed: dict[int, float]
  mean: float | None
  interval: tuple[float, float] | None
  reason: str

  @property
  def significant(self) -> bool:
    """Whether there is an interval and it excludes zero."""
    return self.interval is not None and not (
      self.interval[0] <= 0 <= self.interval[1]
    )


def paired_difference(
  method: dict[int, float], base: dict[int, float]
) -> Difference:
  """Compares two sets of accuracies on their common seeds.

  Args:
    method: Accuracy of the method by seed.
    base: Accuracy of the base optimizer by seed.

  Returns:
    The differences, with mean and 95% Student-t interval.
  """
  shared = [seed for seed in method if seed in base]
  by_seed = {seed: method[seed] - base[seed] for seed in shared}
  differences = np.array(list(by_seed.values()))
  if not by_seed:
    reason = 'no seed has a complete run of both'
    return Difference(by_seed, None, None, reason)
  center = float(differences.mean())
  if len(shared) == 1:
    reason = 'one seed gives no estimate of the seed-to-seed variance'
    return Difference(by_seed, center, None, reason)
  # Equal differences are an artifact of accuracies in whole examples, not a
  # variance of zero, and an interval of zero width would be wrong. Equality is
  # up to the rounding of float32, the dtype of accuracies.
  if np.ptp(differences) < 1e-6:
    reason = 'all seeds differ by the same amount: no variance to estimate'
    return Difference(by_seed, center, None, reason)
  from scipy import stats

  low, high = stats.t.interval(
    CONFIDENCE,
    df=len(shared) - 1,
    loc=center,
    scale=stats.sem(differences),
  )
  return Difference(by_seed, center, (float(low), float(high)), '')
