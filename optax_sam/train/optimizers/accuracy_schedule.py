"""Settings of a method that change between the epochs of a run."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class ByTrainingAccuracy:
  """A setting that depends on the best training accuracy of a run so far.

  The accuracy is that of the whole training set, including wrong labels, in
  evaluation mode, after the last step of an epoch. So it does not depend on
  dropout or on the order of the data, no value returns, and it costs a forward
  pass an epoch, which the measured time of a step excludes. The method's state
  must not depend on the setting, because it is not reset.

  Attributes:
    start: value until the first accuracy in `then` is reached.
    then: pairs of an accuracy, as a fraction, and the value from then on, in
      ascending order.
  """

  start: float
  then: tuple[tuple[float, float], ...]

  def at(self, accuracy: float) -> float:
    """Returns the value once this training accuracy has been reached."""
    reached = [later for least, later in self.then if accuracy >= least]
    return [self.start, *reached][-1]

  def __str__(self) -> str:
    """Returns a description for the report."""
    later = ', '.join(
      f'{value} from {100 * accuracy:g}%' for accuracy, value in self.then
    )
    return f'{self.start} ({later} training accuracy)'


def following(settings: Mapping[str, Any], accuracy: float) -> dict[str, float]:
  """Returns the values of accuracy-dependent settings at an accuracy."""
  return {
    name: value.at(accuracy)
    for name, value in settings.items()
    if isinstance(value, ByTrainingAccuracy)
  }
