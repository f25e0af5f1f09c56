"""Detects runs that diverged, so that they can be stopped early."""

import math
from collections.abc import Sequence

# A loss that rises above its start by so many times its start, and by at least
# so much, is far above it. Cross entropy starts at the logarithm of the number
# of classes, and 10 is the loss at a probability of 0.005%.
_RISE = 10.0
# It must be so for this fraction of the steps, and for this number of rows.
_LONG = 0.1
_ROWS = 3


def found(log: Sequence[dict[str, float]], steps: int) -> str:
  """Returns the reason why a run diverged, '' if it did not.

  A run diverged if a parameter is not finite, if the loss is not finite in two
  rows in a row or at the end, or if the loss is far above that of the first row
  for a tenth of the steps. A single spike is not a divergence.

  Args:
    log: rows of the run so far, with `step`, `loss` and `parameter_norm`.
    steps: steps of the complete run.
  """
  last, start = log[-1], log[0]['loss']
  if not math.isfinite(last.get('parameter_norm', 0.0)):
    return 'the parameters are not finite'
  at_end = last['step'] >= steps
  losses = [row['loss'] for row in log[-1 if at_end else -2 :]]
  if (len(log) > 1 or at_end) and not any(map(math.isfinite, losses)):
    return 'the loss is not finite'
  limit = start + _RISE * max(1.0, abs(start))
  begin = last['step'] - _LONG * steps
  span = [row['loss'] for row in log if row['step'] >= begin]
  is_long = log[0]['step'] <= begin and len(span) >= _ROWS
  if is_long and min(span) > limit:
    return (
      f'the loss, at first {start:.3g}, has been above {limit:.3g} for long'
    )
  return ''
