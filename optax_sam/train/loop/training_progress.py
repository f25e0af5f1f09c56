"""The progress of a run: its state and its rows of metrics."""

import dataclasses

from optax_sam.train.data import inputs as inputs_lib
from optax_sam.train.loop.train_step import TrainingState

Row = dict[str, float]


@dataclasses.dataclass
class Progress:
  """The progress of a run.

  Attributes:
    state: parameters, optimizer state, keys.
    step: steps taken, which is also the position in the data.
    log: rows of training metrics so far.
    evaluations: rows of test metrics so far.
    best_train_accuracy: highest training accuracy at the end of an epoch so
      far; 0 if no setting depends on it.
    validations: rows of metrics on held-out examples so far.
    inputs: position in the data, from `inputs.state`.
    stopped: reason why the run was stopped, because it diverged; empty if it
      was not.
  """

  state: TrainingState
  step: int = 0
  log: list[Row] = dataclasses.field(default_factory=list)
  evaluations: list[Row] = dataclasses.field(default_factory=list)
  best_train_accuracy: float = 0.0
  validations: list[Row] = dataclasses.field(default_factory=list)
  inputs: inputs_lib.State = dataclasses.field(default_factory=dict)
  stopped: str = ''


def is_evaluated(step: int, steps: int, count: int) -> bool:
  """Whether a step is one of up to `count` evenly spaced ones."""
  count = min(count, steps)
  nearest = round(step * count / steps)
  return any(
    step == max(1, round(steps * position / count))
    for position in (nearest - 1, nearest, nearest + 1)
    if 1 <= position <= count
  )
