"""Averages of weights that stand beside the optimizer."""

from typing import NamedTuple

from optax_sam.averaging.swad import Swad


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
