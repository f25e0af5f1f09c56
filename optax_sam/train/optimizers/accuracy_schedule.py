"""Settings of a method that change between the epochs of a run."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class ByTrainingAccuracy:
  """A setting that follows the best training accuracy of a run so far.

  It stands in the place of the setting's value::

    value = the last of `then` whose accuracy was reached, else `start`
    accuracy = highest one at the end of an epoch so far, so no value returns

  The accuracy is that of the whole training set, with its wrong labels if
  there are any, in evaluation mode, after the last step of an epoch. It is
  then a property of the model alone: dropout and the order of the data add
  nothing, and it is the `train_accuracy` of the evaluations. It costs a forward
  pass over the training set an epoch, which is a third of a gradient a step and
  not part of the time of a step. With batch norm it lags in the first epochs,
  as the running statistics do.

  The method's state must not depend on the setting, as it is kept.

  Attributes:
    start: value until the first of these accuracies is reached.
    then: pairs of an accuracy, as a fraction, and the value from there on, in
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
    """Writes it for the report."""
    later = ', '.join(
      f'{value} from {100 * accuracy:g}%' for accuracy, value in self.then
    )
    return f'{self.start} ({later} training accuracy)'


def following(settings: Mapping[str, Any], accuracy: float) -> dict[str, float]:
  """Returns the settings that follow the training accuracy, at this one."""
  return {
    name: value.at(accuracy)
    for name, value in settings.items()
    if isinstance(value, ByTrainingAccuracy)
  }
