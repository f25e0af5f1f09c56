"""LPF-SGD: the gradient of the loss smoothed by noise."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_sam import validation
from optax_sam.engine import devices, partition
from optax_sam.engine.loss_view import (
  GradFn,
  Objective,
  PerExampleValueFn,
  ValueFn,
)
from optax_sam.engine.micro_batches import sum_over_chunks
from optax_sam.engine.sharpness_aware import sharpness_aware
from optax_sam.methods.frob_sam import stay
from optax_sam.trees import tree_math
from optax_sam.trees.random_trees import draw_direction


def lpf_sgd(
  gamma: optax.ScalarOrSchedule = 0.0005,
  *,
  micro_batches: int = 8,
  final_ratio: float = 15.0,
  total_steps: int,
  key: jax.Array | int,
  mask: partition.Mask = None,
  axis_name: Any = None,
  sync_ascent: bool = False,
) -> optax.GradientTransformationExtraArgs:
  """Low-pass filtering SGD: the gradient of the loss smoothed by noise.

  The batch is split, in order, into M = `micro_batches` parts of as equal
  numbers of examples as there can be. With `t` the step, counted from 0, `z_k`
  of standard normal entries for part k, drawn anew at every step, and the mean
  weighted by the numbers of examples::

    gamma_t = gamma * (1 + (final_ratio - 1) * (1 - cos(pi * t / total_steps))
                           / 2)                   # stays from there on
    size    = norm(filter), for each output filter of a leaf with more axes
              norm(leaf), for a leaf with at most one
    u       = mean over k of the gradient of part k at w + gamma_t * size * z_k

  The output filters of a leaf are along its last axis, as in Flax. The gradient
  that comes in isn't used, so that a jitted step computes one in all. The rule
  was read, but no program was run beside it. What becomes of a batch that M
  doesn't divide, and of steps behind the last, is our choice.

  Args:
    gamma: noise at the first step, relative to the size of a filter, a scalar
      of at least 0, or a schedule of it by the step; 0 is the base optimizer,
      up to the rounding of sums over parts.
    micro_batches: number M of parts with a noise of their own, at least 1; no
      more than there are examples are made.
    final_ratio: what `gamma` has grown by in the end, at least 0; 1 keeps it.
      The authors take 35 and 25 for WRN-28-10.
    total_steps: number of steps over which it grows, at least 1.
    key: integer seed or typed key, the same on all devices.
    mask: leaves that may be perturbed; see `optax_sam.sharpness_aware`.
    axis_name: device axis to average over; see `optax_sam.sharpness_aware`.
    sync_ascent: whether the ascent gradient is averaged too; see there.
      There is none: it makes no difference. Each device splits its own
      examples, and draws the M noises that all the others draw.

  Returns:
    A gradient transformation, to be placed first in `optax.chain`; its
    `update` needs `per_example_value_fn` and `batch`, or if M is 1 `value_fn`
    or `grad_fn`. With batch norm each part is normalized by itself. Cost: 1
    gradient, 1 / 3 if you use the clean loss, and M normal numbers drawn for
    each parameter; the parts run one after the other. Keeps the key.
    `ascent_norm` of its `info` is 0.

  Raises:
    ValueError: if a Python value is out of range, and in `update` if what it
      needs was not passed.

  References:
    Bisla, Wang, Choromanska, `Low-Pass Filtering SGD for Recovering Flat
    Optima in the Deep Learning Optimization Landscape
    <https://arxiv.org/abs/2201.08025>`_, AISTATS 2022.

  Noise doesn't change the gradient of what is linear:

  >>> import jax, jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.lpf_sgd(micro_batches=2, total_steps=10, key=0)
  >>> losses = lambda w, batch: w * batch
  >>> w, batch = jnp.float32(5.0), jnp.array([1.0, 2.0, 6.0])
  >>> u, _ = tx.update(
  ...   w, tx.init(w), w, per_example_value_fn=losses, batch=batch
  ... )
  >>> float(u)
  3.0
  """
  validation.check_radius(gamma, 'gamma')
  validation.check_static_integer('micro_batches', micro_batches)
  validation.check_number('final_ratio', final_ratio, at_least=0)
  validation.check_count('total_steps', total_steps)
  validation.check_sync_ascent(sync_ascent, axis_name)
  element = sharpness_aware(stay(key), mask=mask, axis_name=axis_name)

  def update(
    updates: Any,
    state: Any,
    params: Any = None,
    *,
    value_fn: ValueFn | None = None,
    grad_fn: GradFn | None = None,
    per_example_value_fn: PerExampleValueFn | None = None,
    batch: Any = None,
    ascend: bool | None = None,
    **extra_args: Any,
  ) -> tuple[Any, Any]:
    if params is None or ascend is False:
      return element.update(updates, state, params, ascend=ascend, **extra_args)
    floats = partition.float_leaves(params)
    objective = Objective(
      value_fn=value_fn,
      grad_fn=grad_fn,
      per_example_value_fn=per_example_value_fn,
      batch=batch,
      axis_name=axis_name,
      floats=floats,
      whole_params=params,
    )
    draws = state.perturbation

    def smoothed(whole: optax.Params) -> Any:
      center = partition.keep(floats, whole)
      allowed = partition.chosen_leaves(mask, center)
      inside = partition.keep(allowed, center)
      start = gamma(draws.count) if callable(gamma) else gamma
      sizes = _sizes(start, final_ratio, total_steps, draws.count, inside)

      def point(part: Any) -> optax.Params:
        moved = _move(draws.key, draws.count, part, sizes, inside)
        return partition.fill(allowed, moved, center)

      loss, gradient = _mean_over_parts(objective, micro_batches, point)
      gradient = partition.fill(floats, gradient, whole)
      return gradient if loss is None else (loss, gradient)

    # What the element takes for the clean gradient, in whose place nothing is
    # known: otherwise that of the whole batch would be computed as well.
    unknown = jax.tree.map(jnp.zeros_like, partition.keep(floats, updates))
    unknown = devices.as_local(unknown, axis_name)
    return element.update(
      partition.fill(floats, unknown, updates),
      state,
      params,
      grad_fn=smoothed,
      ascend=ascend,
      **extra_args,
    )

  return optax.GradientTransformationExtraArgs(element.init, update)


@jax.jit
def _sizes(
  gamma: Any, final_ratio: Any, total_steps: Any, count: Any, params: Any
) -> Any:
  """Returns the standard deviation of the noise of every filter."""

  def leaf(weights: jax.Array) -> jax.Array:
    wide = tree_math.widen(weights)
    number = lambda x: jnp.asarray(x).astype(wide.dtype)
    share = jnp.minimum(number(count) / number(total_steps), 1)
    grown = (number(final_ratio) - 1) * (1 - jnp.cos(math.pi * share)) / 2
    axes = range(wide.ndim - 1 if wide.ndim > 1 else wide.ndim)
    squares = jnp.sum(jnp.square(wide), axis=tuple(axes), keepdims=True)
    return number(gamma) * (1 + grown) * jnp.sqrt(squares)

  return jax.tree.map(leaf, params)


@jax.jit
def _move(
  key: jax.Array, count: jax.Array, part: Any, sizes: Any, params: optax.Params
) -> optax.Params:
  part_key = jax.random.fold_in(jax.random.fold_in(key, count), part)
  z = draw_direction(part_key, params)
  return tree_math.add(params, jax.tree.map(jnp.multiply, sizes, z))


def _mean_over_parts(
  objective: Objective, micro_batches: int, point: Any
) -> tuple[jax.Array | None, optax.Updates]:
  """Returns loss and gradient, each part of the batch at a point of its own."""
  if micro_batches == 1:
    return objective.value_and_grad(point(0))
  examples = objective.num_examples
  parts = min(micro_batches, examples)
  size, larger = divmod(examples, parts)
  sizes = np.full(parts, size) + (np.arange(parts) < larger)
  numbers = np.repeat(np.arange(parts, dtype=np.int32), sizes)

  def of_part(rows: tuple[jax.Array, Any]) -> Any:
    number, batch = rows
    part = objective.on(batch)
    weight = part.num_examples / examples
    found = part.value_and_grad(point(number[0]))
    return jax.tree.map(lambda x: weight * tree_math.widen(x), found)

  def sum_over(rows: slice, length: int) -> Any:
    batch = (numbers[rows], objective.rows(rows).batch)
    return sum_over_chunks(of_part, batch, length, objective.axis_name)

  boundary = larger * (size + 1)
  sums = [
    sum_over(slice(first, last), length)
    for first, last, length in (
      (0, boundary, size + 1),
      (boundary, examples, size),
    )
    if first < last
  ]
  return functools.reduce(functools.partial(jax.tree.map, jnp.add), sums)
