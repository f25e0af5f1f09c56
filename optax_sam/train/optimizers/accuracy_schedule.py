"""Settings of a method that change between the epochs of a run."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class ByTrainingAccuracy:
  """A setting that depends on the best training accuracy of a run so far.

  It replaces the value of the setting::

    value = the last of `then` whose accuracy was reached, else `start`
    accuracy = highest one at the end of an epoch so far, so no value returns

  The accuracy is that of the whole training set, including wrong labels, in
  evaluation mode, after the last step of an epoch. So it does not depend on
  dropout or on the order of the data, and it equals the `train_accuracy` of the
  evaluations. It costs a forward pass over the training set per epoch, that is
  a third of a gradient per step, which the measured time of a step excludes.
  With batch norm it lags in the first epochs, because the running statistics
  lag.

  The method's state must not depend on the setting, because it is not reset.

  Attributes:
    start: value until the first accuracy in `then` is reached.
    then: pairs of an accuracy, as a fraction, and the value from then on, in
      ascending order.
  """

  start: float
  then: tuple[tuple[float, float], ...]

  def at(self, accuracy: float) -> float:
    """Returns the value once this training accuracy has been reached."""
    value = self.start
    for reached, later in self.then:
      if accuracy >= reached:
        value = later
    return value

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
