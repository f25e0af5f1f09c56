"""Frob-SAM: penalizes the variance of the loss around the parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.engine import devices, partition
from optax_sam.engine.loss_view import (
  GradFn,
  Objective,
  PerExampleValueFn,
  ValueFn,
)
from optax_sam.engine.perturbation import RandomState
from optax_sam.engine.sharpness_aware import sharpness_aware
from optax_sam.trees import tree_math
from optax_sam.trees.random_trees import draw_directions


def frob_sam(
  rho: optax.ScalarOrSchedule = 0.005,
  *,
  penalty: float = 0.005,
  num_samples: int = 2,
  key: jax.Array | int,
  mask: partition.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Frob-SAM: penalizes how much the loss varies around the weights.

  With `g` the gradient at `w`, `z_i` directions with standard normal entries,
  drawn anew at every step, `L_i` and `g_i` the loss and its gradient at
  `w + rho * z_i`, and n = `num_samples` of them::

    c = sum over i of (L_i - mean of L) * (g_i - mean of g) / (n - 1)
    u = g + penalty / rho^2 * c                      # rho = 0: u = g

  `c` is half of the gradient of the variance of the losses: to leading order
  `u` is the gradient of `L + penalty / 2 * norm(grad L)^2 + penalty * rho^2 /
  4 * norm(H)_F^2`, with the Frobenius norm of the Hessian H. Nothing is
  perturbed by a gradient, so the engine of the other methods takes this `u` for
  its second gradient. The rule and the defaults were read, but no program was
  run beside it. A factor on the loss is one on `penalty` too.

  Args:
    rho: standard deviation of each entry of the perturbations, in the unit of
      the parameters, a scalar of at least 0, or a schedule of it by the step.
      Mind that they are `rho * sqrt(N)` long, with N entries.
    penalty: weight of the variance, at least 0; 0 is the base optimizer.
    num_samples: number n of directions, at least 2.
    key: integer seed or typed key, the same on all devices.
    mask: leaves that may be perturbed; see `optax_sam.sharpness_aware`.
    axis_name: device axis to average over; see `optax_sam.sharpness_aware`.
    sync_ascent: whether the ascent gradient is averaged too; see there.
      Here it is `L_i` and `g_i` that are averaged before they are multiplied.
      Directions are the same on all devices.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`; its
    `update` needs `value_fn`, or a `grad_fn` that returns (loss, gradient).
    Cost: 1 + `num_samples` gradients, whose results are all in memory. Keeps
    the key.

  Raises:
    ValueError: if a Python value is out of range, and in `update` if what it
      needs was not passed.

  References:
    Tahmasebi, Soleymani, Bahri, Jegelka, Jaillet, `A Universal Class of
    Sharpness-Aware Minimization Algorithms
    <https://arxiv.org/abs/2406.03682>`_, ICML 2024.

  Where all gradients are equal nothing is added:

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.frob_sam(rho=0.1, penalty=0.5, num_samples=2, key=0)
  >>> u, _ = tx.update(
  ...   jnp.float32(3.0),
  ...   tx.init(jnp.float32(1.0)),
  ...   jnp.float32(1.0),
  ...   value_fn=lambda w: 3 * w,
  ... )
  >>> float(u)
  3.0
  """
  validation.check_radius(rho)
  validation.check_number('penalty', penalty, at_least=0)
  validation.check_static_integer('num_samples', num_samples, at_least=2)
  element = sharpness_aware(
    stay(key), mask=mask, axis_name=axis_name, sync_ascent=sync_ascent
  )

  def update(
    updates: Any,
    state: Any,
    params: Any = None,
    *,
    value_fn: ValueFn | None = None,
    grad_fn: GradFn | None = None,
    per_example_value_fn: PerExampleValueFn | None = None,
    batch: Any = None,
    **extra_args: Any,
  ) -> tuple[Any, Any]:
    floats = None if params is None else partition.float_leaves(params)
    objective = Objective(
      value_fn=value_fn,
      grad_fn=grad_fn,
      per_example_value_fn=per_example_value_fn,
      batch=batch,
      axis_name=axis_name,
      floats=floats,
      whole_params=params,
    )

    def penalized(whole: optax.Params) -> tuple[jax.Array, optax.Updates]:
      center = partition.keep(floats, whole)
      allowed = partition.chosen_leaves(mask, center)
      inside = partition.keep(allowed, center)
      draws = state.perturbation
      radius = rho(draws.count) if callable(rho) else rho
      samples = []
      for z in draw_directions(draws.key, draws.count, num_samples, inside):
        moved = _move(radius, inside, z)
        point = partition.fill(allowed, moved, center)
        samples.append(_value_and_grad(objective, point))
      values, gradients = map(list, zip(*samples, strict=True))
      if sync_ascent:
        values, gradients = devices.average((values, gradients), axis_name)
      loss, direction = _penalize(
        radius, penalty, partition.keep(floats, updates), values, gradients
      )
      return loss, partition.fill(floats, direction, whole)

    return element.update(
      updates, state, params, grad_fn=penalized, **extra_args
    )

  return optax.GradientTransformationExtraArgs(element.init, update)


@jax.jit
def _move(radius: Any, params: optax.Params, z: optax.Params) -> optax.Params:
  scaled = jax.tree.map(lambda x: jnp.asarray(radius, x.dtype) * x, z)
  return tree_math.add(params, scaled)


def _value_and_grad(
  objective: Objective, point: optax.Params
) -> tuple[jax.Array, optax.Updates]:
  value, gradient = objective.value_and_grad(point)
  value = objective.value(point) if value is None else value
  if value is None:
    msg = (
      'frob_sam needs the loss beside its gradient: let grad_fn return both, '
      'as jax.value_and_grad(loss) does, or pass value_fn as well\n'
      '  updates, opt_state = tx.update(\n'
      '    grads, opt_state, params, value_fn=value_fn, grad_fn=grad_fn)'
    )
    raise ValueError(msg)
  return value, gradient


@jax.jit
def _penalize(
  radius: Any,
  penalty: Any,
  clean: optax.Updates,
  values: list[jax.Array],
  gradients: list[optax.Updates],
) -> tuple[jax.Array, optax.Updates]:
  """Returns the mean loss, and the clean gradient with the penalty's."""
  losses = tree_math.widen(jnp.stack(values))
  loss = jnp.mean(losses)
  radius = jnp.asarray(radius, losses.dtype)
  moves = radius > 0
  weight = jnp.asarray(penalty, losses.dtype) / (len(values) - 1)
  weight = weight / jnp.square(jnp.where(moves, radius, 1))
  weights = jnp.where(moves, weight * (losses - loss), 0)

  def leaf(g: jax.Array, *samples: jax.Array) -> jax.Array:
    dtype = tree_math.wide_dtype(g, *samples)
    wide = [x.astype(dtype) for x in samples]
    mean = sum(wide[1:], wide[0]) / len(wide)
    total = sum(
      (
        w.astype(dtype) * (x - mean) for w, x in zip(weights, wide, strict=True)
      ),
      jnp.zeros_like(mean),
    )
    return g.astype(dtype) + total

  return loss, jax.tree.map(leaf, clean, *gradients)


def stay(key: jax.Array | int) -> optax.GradientTransformation:
  """Perturbs nothing, and keeps what the directions are drawn from."""
  validation.check_key(key)

  def init(params: optax.Params) -> RandomState:
    del params
    return RandomState(jnp.zeros((), jnp.int32), validation.as_key(key))

  def update(
    updates: Any, state: Any, params: Any = None
  ) -> tuple[Any, RandomState]:
    del params
    state = RandomState(tree_math.increment(state.count), state.key)
    return jax.tree.map(jnp.zeros_like, updates), state

  return optax.GradientTransformation(init, update)
