"""Averages of the weights of a run, with settings for the trainer."""

from typing import NamedTuple

import optax

import optax_sam
from optax_sam import validation
from optax_sam.methods.swad import Swad


class ValidatedAveraging(NamedTuple):
  """An average that depends on validation losses.

  `accumulate` of its functions is part of each step, `validate` is called after
  the last step of an epoch, and `result` returns the solution of a run.
  """

  functions: Swad
  held_out: float  # fraction of the training examples
  epochs: int  # between validations


def swa(
  *, start: float = 0.75, total_steps: int, refresh_every: int
) -> optax.GradientTransformationExtraArgs:
  """Averages the weights of the last epochs of a run, once an epoch.

  The authors average over about the last half of a run, at a high learning
  rate. Under the schedule of a comparison the last quarter is close enough.

  Args:
    start: fraction of the run before averaging starts.
    total_steps: length of the run in steps.
    refresh_every: number of steps in an epoch.
  """
  validation.check_number('start', start, at_least=0, at_most=1)
  first = max(1, round(start * total_steps))
  return optax_sam.swa(first, every=refresh_every)


def swad(
  *,
  n_converge: int = 3,
  n_tolerance: int = 6,
  tolerance: float = 0.3,
  validation_share: float = 0.1,
  epochs_per_validation: int = 1,
) -> ValidatedAveraging:
  """Averages the weights of all steps, from start to end by validation loss.

  The seed of the run chooses the held-out examples among the training examples,
  with the same fraction of every class, and including wrong labels. Other
  methods of a comparison train on these examples too. Their number and the
  interval between validations are choices of the trainer.

  Args:
    n_converge: see `optax_sam.swad`.
    n_tolerance: see `optax_sam.swad`.
    tolerance: see `optax_sam.swad`.
    validation_share: fraction of the training examples that is held out, above
      0 and at most 0.5.
    epochs_per_validation: number of epochs between validations, at least 1; an
      epoch excludes the held-out examples.
  """
  functions = optax_sam.swad(
    n_converge=n_converge, n_tolerance=n_tolerance, tolerance=tolerance
  )
  validation.check_number(
    'validation_share', validation_share, above=0, at_most=0.5
  )
  validation.check_static_integer(
    'epochs_per_validation', epochs_per_validation
  )
  return ValidatedAveraging(functions, validation_share, epochs_per_validation)
