"""Pieces whose radius may be a schedule."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_sam import numerics, validation


class RadiusState(NamedTuple):
  """State of a piece whose radius is a schedule; none without one.

  Attributes:
    count: number of steps so far, a scalar int32.
  """

  count: jax.Array


def with_radius(
  rho: optax.ScalarOrSchedule, perturb: Callable[..., optax.Updates]
) -> optax.GradientTransformationExtraArgs:
  """Builds a piece that keeps nothing but the count of its schedule.

  Args:
    rho: radius, at least 0, or a schedule of it.
    perturb: from (radius, ascent gradient) and the parameters and extra
      arguments, by name, to epsilon.

  Returns:
    A perturbation.

  Raises:
    ValueError: if rho is a Python value that is no number of at least 0.
  """
  validation.check_radius(rho)

  def init(params: optax.Params) -> RadiusState | optax.EmptyState:
    del params
    if callable(rho):
      return RadiusState(jnp.zeros((), jnp.int32))
    return optax.EmptyState()

  def update(
    updates: Any, state: Any, params: Any = None, **extra_args: Any
  ) -> tuple[Any, Any]:
    radius = rho
    if callable(rho):
      radius = rho(state.count)
      state = RadiusState(numerics.increment(state.count))
    return perturb(radius, updates, params=params, **extra_args), state

  return optax.GradientTransformationExtraArgs(init, update)
