"""What a method that takes its steps itself tells of its ascents."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam.engine import partition
from optax_sam.engine.info import SharpnessAwareState
from optax_sam.engine.loss_view import Objective
from optax_sam.engine.perturbation import scale_to_radius
from optax_sam.engine.sharpness_aware import sharpness_aware
from optax_sam.trees import tree_math

_KEEPS_NOTHING = sharpness_aware(scale_to_radius(0.0))


def init(
  params: optax.Params, mask: partition.Mask = None
) -> SharpnessAwareState:
  """Returns what `optax_sam.metrics` reads, before the first step.

  Args:
    params: all of the parameters.
    mask: leaves that may be perturbed.

  Raises:
    ValueError: if one of these is complex.
  """
  partition.check_real(params, mask)
  floats = partition.keep(partition.float_leaves(params), params)
  state = _KEEPS_NOTHING.init(floats)
  assert isinstance(state, SharpnessAwareState)
  return state


def advance(
  state: SharpnessAwareState, ascent_norm: jax.Array, loss: jax.Array
) -> SharpnessAwareState:
  """Counts a step that took more gradients than one.

  Args:
    state: before the step.
    ascent_norm: norm of the ascent gradient, averaged over the devices.
    loss: loss at the perturbed parameters, likewise.
  """
  info = state.info
  ascended = jnp.ones((), bool)
  norm, loss = tree_math.cast_like(
    (ascent_norm, loss), (info.ascent_norm, info.perturbed_loss)
  )
  return state._replace(
    count=tree_math.increment(state.count),
    info=info._replace(
      ascended=ascended,
      # A buffer of its own: the same one can't be donated twice.
      decided=ascended.copy(),
      second_gradients=info.second_gradients + 1,
      ascent_norm=norm,
      perturbed_loss=loss,
    ),
  )


def objective_of(
  params: Any, given: dict[str, Any], axis_name: Any
) -> Objective:
  """Returns what a training step gave to differentiate.

  Args:
    params: all of the parameters.
    given: the extra arguments of `update`.
    axis_name: the axis that gradients stay local to.

  Raises:
    ValueError: if there are no parameters.
  """
  if params is None:
    msg = (
      'params must be given: write tx.update(grads, opt_state, params, '
      'value_fn=value_fn).'
    )
    raise ValueError(msg)
  names = ('value_fn', 'grad_fn', 'per_example_value_fn', 'batch')
  return Objective(
    **{name: given.get(name) for name in names},
    axis_name=axis_name,
    floats=partition.float_leaves(params),
    whole_params=params,
  )


def known_loss(value: Any, state: SharpnessAwareState) -> jax.Array:
  """Returns a loss, or the last one where a `grad_fn` returns none."""
  known = state.info.perturbed_loss
  # With its dtype: a Python number would make the state weakly typed.
  return known if value is None else jnp.asarray(value, known.dtype)
