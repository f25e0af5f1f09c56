"""From an ascent gradient to the perturbed parameters."""

import numbers
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_sam.engine import partition
from optax_sam.engine.loss_view import Objective
from optax_sam.trees import tree_math


class Displaced(NamedTuple):
  """Where the second gradient is taken.

  Attributes:
    point: the perturbed parameters.
    ascent_norm: norm of the ascent gradient over the leaves that may be
      perturbed.
    state: next state of the perturbation.
    opposite: the parameters perturbed by `-epsilon`, where they are wanted.
  """

  point: optax.Params
  ascent_norm: jax.Array
  state: Any
  opposite: optax.Params | None = None


class Displacement:
  """Perturbs the parameters, in one program wherever that is possible.

  Most perturbations are functions of arrays: outside of jit they are one
  dispatch. Those that call back into the training step, for more gradients,
  can't be compiled without it and run as they come; the first call finds out.
  """

  def __init__(
    self,
    perturbation: optax.GradientTransformation,
    mask: partition.Mask,
    axis_name: Any,
    is_synced: bool,
    *,
    both_sides: bool = False,
  ) -> None:
    self._perturbation = optax.with_extra_args_support(perturbation)
    self._mask = mask
    self._both_sides = both_sides
    self._given = {'axis_name': axis_name, 'is_synced': is_synced}
    self._calls_back = False
    self._program = jax.jit(self._displace_alone)

  def init(self, params: optax.Params) -> Any:
    """Returns the state of the perturbation."""
    allowed = partition.chosen_leaves(self._mask, params)
    return self._perturbation.init(partition.keep(allowed, params))

  def __call__(
    self,
    gradient: optax.Updates,
    state: Any,
    params: optax.Params,
    *,
    gradient_at: Callable[[optax.Params], optax.Updates],
    objective: Objective,
    extra_args: dict[str, Any],
  ) -> Displaced:
    """Perturbs the parameters.

    Args:
      gradient: ascent gradient.
      state: state of the perturbation.
      params: parameters, unperturbed.
      gradient_at: from parameters to the ascent gradient there.
      objective: the loss of the batch.
      extra_args: what the caller of `update` passed besides.
    """
    if not self._calls_back and _are_arrays(extra_args):
      try:
        return self._program(gradient, state, params, extra_args)
      except _CalledBackError:
        self._calls_back = True
    return self._displace(
      gradient, state, params, gradient_at, objective.of_leaves, extra_args
    )

  def _displace_alone(
    self,
    gradient: optax.Updates,
    state: Any,
    params: optax.Params,
    extra_args: dict[str, Any],
  ) -> Displaced:
    return self._displace(
      gradient, state, params, _refuse, lambda _: _Refusing(), extra_args
    )

  def _displace(
    self,
    gradient: optax.Updates,
    state: Any,
    params: optax.Params,
    gradient_at: Callable[[optax.Params], optax.Updates],
    objective_of: Callable[[Any], Any],
    extra_args: dict[str, Any],
  ) -> Displaced:
    allowed = partition.chosen_leaves(self._mask, params)
    inside = partition.keep(allowed, params)
    gradient = partition.keep(allowed, gradient)

    def move(epsilon: optax.Updates) -> optax.Params:
      moved = tree_math.add(inside, epsilon)
      return partition.fill(allowed, moved, params)

    ours = {
      **self._given,
      'ascent_grad_fn': lambda e: partition.keep(allowed, gradient_at(move(e))),
      'objective': objective_of(allowed),
    }
    epsilon, new_state = self._perturbation.update(
      gradient, state, inside, **{**extra_args, **ours}
    )
    point, size = move(epsilon), tree_math.norm(gradient)
    opposite = None
    if self._both_sides:
      opposite = move(jax.tree.map(jnp.negative, epsilon))
    return Displaced(point, size, new_state, opposite)


def _are_arrays(tree: Any) -> bool:
  kinds = (jax.Array, np.ndarray, numbers.Number)
  return all(isinstance(leaf, kinds) for leaf in jax.tree.leaves(tree))


class _CalledBackError(Exception):
  """A perturbation called a function of the training step."""


def _refuse(*_: Any) -> NoReturn:
  raise _CalledBackError


class _Refusing:
  """Stands for an objective as long as nobody looks at it."""

  def __getattr__(self, name: str) -> NoReturn:
    raise _CalledBackError
