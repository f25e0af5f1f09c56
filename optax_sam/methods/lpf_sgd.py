"""LPF-SGD: the gradient of the loss smoothed by noise."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_sam import validation
from optax_sam.engine import devices, partition
from optax_sam.engine.info import advance
from optax_sam.engine.loss_view import LossView
from optax_sam.engine.micro_batches import sum_over_chunks
from optax_sam.engine.transformation import with_draws
from optax_sam.trees import tree_math
from optax_sam.trees.random_trees import draw_normal


@validation.method('micro_batches')
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
  r"""Low-pass filtering SGD (LPF-SGD): the gradient of a smoothed loss.

  Random noise replaces the ascent step, for each of M parts of the batch.

  .. math::
    \gamma_t &= \gamma\, (1 + (r - 1) (1 - \cos(\pi t / T)) / 2) \\
    \tilde g_k &= \nabla L_k(w + \gamma_t\, s z_k) \\
    u &= \text{mean of } \tilde g_k \text{ over } k

  :math:`L_k` is the loss of part k, and the mean weights parts by examples.
  :math:`z_k` is standard normal, new at every step :math:`t` = 0, 1, ...
  :math:`s` is the norm of the leaf, or of each output filter (on the last axis,
  as in Flax) of a leaf with at least two axes.

  Args:
    gamma: noise at the first step, relative to the norm of a filter, at least
      0, or a schedule of it; 0 is the base optimizer, up to rounding.
    micro_batches: number M of consecutive parts, from 1 to one per example.
    final_ratio: :math:`r`, growth of `gamma`, at least 0; 1 is constant. The
      authors use 35 and 25 for WRN-28-10.
    total_steps: :math:`T`, steps of this growth, at least 1; then it is
      constant.
    key: integer seed or typed key, the same on all devices.
    mask, axis_name, sync_ascent: see `optax_sam.sharpness_aware`. Each device
      splits its own examples, with the same M noises. Without an ascent
      gradient `sync_ascent` makes no difference.

  Returns:
    A gradient transformation to place first in `optax.chain`, whose `update`
    needs `per_example_value_fn` and `batch`, or with M = 1 `value_fn` or
    `grad_fn`; state: the key; `info.ascent_norm` is 0. A jitted step costs 1
    gradient (the incoming one is unused), 1 / 3 more if you use the loss at
    `w`, and M normal numbers per parameter; parts run one by one.

  .. note:: The authors' code was read, not run. The split of a batch that M
    does not divide, and the noise after step T, are our choice. Batch norm
    normalizes each part separately.

  References:
    Bisla, Wang, Choromanska, `Low-Pass Filtering SGD for Recovering Flat Optima
    in the Deep Learning Optimization Landscape
    <https://arxiv.org/abs/2201.08025>`_, AISTATS 2022.

  >>> import jax.numpy as jnp, optax_sam
  >>> tx = optax_sam.lpf_sgd(micro_batches=2, total_steps=10, key=0)
  >>> f = lambda w, x: w * x
  >>> w, x = jnp.float32(5.0), jnp.array([1.0, 2.0, 6.0])
  >>> u, _ = tx.update(w, tx.init(w), w, per_example_value_fn=f, batch=x)
  >>> float(u)  # noise does not change the gradient of a linear loss
  3.0
  """
  validation.check_radius(gamma, 'gamma')
  validation.check_static_integer('micro_batches', micro_batches)
  validation.check_number('final_ratio', final_ratio, at_least=0)
  validation.check_count('total_steps', total_steps)
  validation.check_sync_ascent(sync_ascent, axis_name)
  validation.check_key(key)

  def step(view: LossView, clean: Any, state: Any, count: Any, key: Any) -> Any:
    leaves = view.leaves
    w = leaves.split(view.params)
    inside = leaves.inside(w)
    start = gamma(count) if callable(gamma) else gamma

    def deviation(weights: jax.Array) -> jax.Array:
      wide = tree_math.widen(weights)
      number = lambda x: jnp.asarray(x).astype(wide.dtype)
      progress = jnp.minimum(number(count) / number(total_steps), 1)
      grown = (number(final_ratio) - 1) * (1 - jnp.cos(math.pi * progress)) / 2
      axes = tuple(range(wide.ndim - 1 if wide.ndim > 1 else wide.ndim))
      squares = jnp.sum(jnp.square(wide), axis=axes, keepdims=True)
      return number(start) * (1 + grown) * jnp.sqrt(squares)

    deviations = jax.tree.map(deviation, inside)

    def point(part: Any) -> optax.Params:
      z = draw_normal(key, part, inside)
      return leaves.move(w, jax.tree.map(jnp.multiply, deviations, z))

    loss, gradient = _mean_over_parts(view, micro_batches, point)
    gradient = optax.tree.cast_like(gradient, clean)
    gradient, loss = devices.average((gradient, loss), axis_name)
    return gradient, advance(state, state.info.ascent_norm, loss)

  is_split = micro_batches > 1
  return with_draws(
    key, step, mask=mask, axis_name=axis_name, needs_examples=is_split
  )


def _mean_over_parts(
  view: LossView, micro_batches: int, point: Any
) -> tuple[jax.Array | None, optax.Updates]:
  """Returns loss and gradient, with a separate point for each part."""
  if micro_batches == 1:
    return view.value_and_grad(point(0))
  examples = view.num_examples
  parts = min(micro_batches, examples)
  size, larger = divmod(examples, parts)
  boundary = larger * (size + 1)  # the first parts have an example more
  sizes = np.repeat([size + 1, size], [larger, parts - larger])
  numbers = np.repeat(np.arange(parts, dtype=np.int32), sizes)

  def of_part(rows: tuple[jax.Array, Any]) -> Any:
    number, part = rows[0][0], view.on(rows[1])
    weight = part.num_examples / examples
    found = part.value_and_grad(point(number))
    return jax.tree.map(lambda x: weight * tree_math.widen(x), found)

  def sum_over(rows: slice, length: int) -> Any:
    batch = (numbers[rows], view.rows(rows).batch)
    return sum_over_chunks(of_part, batch, length)

  if not larger:
    return sum_over(slice(examples), size)
  first = sum_over(slice(boundary), size + 1)
  return jax.tree.map(jnp.add, first, sum_over(slice(boundary, examples), size))
