"""Averages of the weights of a run, with settings that fit the trainer."""

from typing import NamedTuple

import optax

import optax_sam
from optax_sam import validation
from optax_sam.methods.swad import Swad


class ValidatedAveraging(NamedTuple):
  """An average that losses of held-out examples lead.

  Attributes:
    functions: what it is, as `optax_sam.swad` has it. `accumulate` is part of
      each step, `validate` follows the last one of an epoch, and `result` is
      what a run has found.
    held_out: share of the training examples that a run validates on, and
      doesn't train on.
    epochs: from one validation to the next.
  """

  functions: Swad
  held_out: float
  epochs: int


def swa(
  *, start: float = 0.75, total_steps: int, refresh_every: int
) -> optax.GradientTransformationExtraArgs:
  """Averages the weights once an epoch in the last part of a run.

  The authors average over about the last half of theirs, at a high learning
  rate; under the schedule that all methods of a comparison share, those of the
  last quarter are near enough to one another.

  Args:
    start: share of the run after which the first weights enter.
    total_steps: length of the run.
    refresh_every: steps of an epoch.
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
  """Averages the weights of all steps while held-out examples say so.

  They are chosen among the training examples by the seed of the run, with the
  same share of every class, and with wrong labels if there are any. That is the
  price of the method: other methods of a comparison train on these examples
  too. Their number, and how often they are asked, are choices of the trainer.

  Args:
    n_converge: as of `optax_sam.swad`.
    n_tolerance: likewise.
    tolerance: likewise.
    validation_share: share of the training examples that is held out, above 0
      and at most 0.5.
    epochs_per_validation: epochs from one validation to the next, at least 1;
      an epoch passes over the other examples.
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
