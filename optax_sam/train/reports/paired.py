"""Paired differences between methods, seed by seed."""

import dataclasses

import numpy as np

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Difference:
  """Test accuracy of a method minus the base optimizer's, seed by seed.

  Attributes:
    by_seed: The difference for each seed that both have.
    mean: Their mean; None without a common seed.
    interval: 95% Student-t interval of the mean; None if it does not exist.
    reason: Why there is no interval; empty if there is one.
  """

  by_seed: dict[int, float]
  mean: float | None
  interval: tuple[float, float] | None
  reason: str

  @property
  def resolved(self) -> bool:
    """Whether there is an interval and it leaves out zero."""
    return self.interval is not None and not (
      self.interval[0] <= 0 <= self.interval[1]
    )


def paired_difference(
  method: dict[int, float], base: dict[int, float]
) -> Difference:
  """Compares two sets of accuracies on the seeds that both have.

  Args:
    method: Accuracy of the method by seed.
    base: Accuracy of the base optimizer by seed.

  Returns:
    The differences, their mean and its 95% Student-t interval.
  """
  shared = [seed for seed in method if seed in base]
  by_seed = {seed: method[seed] - base[seed] for seed in shared}
  differences = np.array(list(by_seed.values()))
  if not by_seed:
    reason = 'no seed has a complete run of both'
    return Difference(by_seed, None, None, reason)
  center = float(differences.mean())
  if len(shared) == 1:
    reason = 'one seed says nothing about the spread between seeds'
    return Difference(by_seed, center, None, reason)
  # Equal differences come out of the coarse grid of accuracies (whole
  # examples), not out of a spread of zero; an interval of no width would lie.
  # Equal up to the rounding of float32, which accuracies are measured in.
  if np.ptp(differences) < 1e-6:
    reason = 'all seeds differ by the same amount: no spread to estimate'
    return Difference(by_seed, center, None, reason)
  from scipy import stats

  low, high = stats.t.interval(
    CONFIDENCE,
    df=len(shared) - 1,
    loc=center,
    scale=stats.sem(differences),
  )
  return Difference(by_seed, center, (float(low), float(high)), '')
