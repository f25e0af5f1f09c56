"""What a descent is."""

from collections.abc import Callable
from typing import Any, NamedTuple

import optax


class Descent(NamedTuple):
  """Combines the clean and the perturbed gradient into a direction.

  Attributes:
    init: from the parameters to the state of the descent, a pytree of arrays.
    on_ascent: from (clean gradient, perturbed gradient, state) to (direction,
      new state); the gradients and the direction are like the parameters.
    on_skip: from (clean gradient, state) to (direction, new state).
    both_sides: whether the perturbed gradient is a pair of them, at
      `w + epsilon` and at `w - epsilon`; it costs one gradient more.
  """

  init: Callable[[optax.Params], Any]
  on_ascent: Callable[[optax.Updates, Any, Any], tuple[Any, Any]]
  on_skip: Callable[[optax.Updates, Any], tuple[Any, Any]]
  both_sides: bool = False


def no_state(params: optax.Params) -> optax.EmptyState:
  """Keeps nothing."""
  del params
  return optax.EmptyState()


def keep_clean(clean: optax.Updates, state: Any) -> tuple[optax.Updates, Any]:
  """Descends with the clean gradient."""
  return clean, state
