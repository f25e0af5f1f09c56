"""The progress of a run: its state, its rows of metrics, its divergence."""

import dataclasses
import math
from collections.abc import Sequence

from optax_sam.train.loop.train_step import TrainingState

Row = dict[str, float]

# The loss is too high if it exceeds its start by more than this multiple of the
# start, and by more than this minimum. Cross entropy starts at the logarithm of
# the number of classes, and 10 is the loss at a probability of 0.005%.
_RISE = 10.0
# It must be too high for this fraction of the steps, and for this number of
# rows.
_LONG = 0.1
_ROWS = 3


@dataclasses.dataclass
class Progress:
  """A run so far, with rows of training, test and held-out metrics."""

  state: TrainingState
  step: int = 0  # steps taken
  log: list[Row] = dataclasses.field(default_factory=list)
  evaluations: list[Row] = dataclasses.field(default_factory=list)
  validations: list[Row] = dataclasses.field(default_factory=list)
  stopped: str = ''  # the reason, if it diverged


def is_due(step: int, steps: int, count: int) -> bool:
  """Whether a step is one of up to `count` evenly spaced ones."""
  count = min(count, steps)
  nearest = round(step * count / steps)
  return any(
    step == max(1, round(steps * position / count))
    for position in (nearest - 1, nearest, nearest + 1)
    if 1 <= position <= count
  )


def divergence(log: Sequence[Row], steps: int) -> str:
  """Returns the reason why a run of `steps` diverged, '' if it did not."""
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
