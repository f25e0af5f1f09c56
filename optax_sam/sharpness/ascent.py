"""SAM sharpness: the largest rise of the loss within a ball."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam import validation
from optax_sam.sharpness.mean_loss import MeanLoss
from optax_sam.trees import tree_math

_STEP_LENGTH = 0.1  # of an ascent step, in units of the radius


def sam_sharpness(
  value_fn: Callable[..., jax.Array],
  params: optax.Params,
  rho: float,
  *,
  steps: int = 1,
  restarts: int = 0,
  args: tuple[Any, ...] = (),
  batches: Iterable[Any] | None = None,
  per_batch: bool = False,
  seed: int = 0,
) -> float:
  """Returns the largest rise of the loss within a ball around the parameters.

  With `L` the loss and norms over all leaves together, a lower bound of::

    max over norm(e) <= rho of  L(w + e) - L(w)

  One step is that of SAM, `e = rho * g / norm(g)`. More steps have the length
  `0.1 * rho` along the normalized gradient, are projected onto the ball, and
  the largest rise of all of them counts. The authors' code measures batches of
  128 separately, as `per_batch` does, which gives another value than all data
  at once.

  Args:
    value_fn: from the parameters, `args` and a batch to a scalar loss.
    params: where to measure, a pytree of floating-point arrays.
    rho: radius of the ball in the unit of the parameters, at least 0.
    steps: number of ascent steps, at least 1; 20 come close to the maximum.
    restarts: number of further ascents from random points at the distance
      `rho`, at least 0; above 0 only with more than one step.
    args: arrays that differ from call to call, such as running statistics or
      a batch. Nothing is recompiled for the same `value_fn`.
    batches: pytrees with one row an example in every leaf, over which the loss
      is averaged; each is given to `value_fn` after `args`.
    per_batch: whether to return the mean of the rises of single batches, each
      with its own perturbation, instead of the rise of the mean.
    seed: of the random starts, an int.

  Returns:
    The rise in the unit of the loss, which can be below 0 for one step; NaN
    where the loss is.

  References:
    Andriushchenko, Flammarion, `Towards Understanding Sharpness-Aware
    Minimization <https://arxiv.org/abs/2206.06232>`_, ICML 2022.

  >>> value = lambda x: 0.5 * jnp.sum(x**2)
  >>> round(sam_sharpness(value, jnp.array([3.0, 4.0]), 1.0), 4)  # at 6/5 x
  5.5
  """
  validation.check_number('rho', rho, at_least=0)
  validation.check_static_integer('steps', steps)
  validation.check_static_integer('restarts', restarts, at_least=0)
  if restarts and steps == 1:
    msg = (
      f'restarts must be 0 with steps=1, got {restarts}: write steps=20 or so'
    )
    raise ValueError(msg)
  if per_batch and batches is None:
    msg = 'per_batch=True needs batches, got none: write batches=...'
    raise ValueError(msg)
  loss = MeanLoss(value_fn, args, batches)
  rise = lambda loss: float(_rise(loss, params, rho, steps, restarts, seed))
  if not per_batch:
    return rise(loss)
  total, total_rows = 0.0, 0.0
  for call, rows in loss.calls():
    total += rows * rise(MeanLoss(value_fn, call))
    total_rows += rows
  return total / total_rows


def _rise(
  loss: MeanLoss, params: Any, rho: float, steps: int, restarts: int, seed: int
) -> jax.Array:
  start, at_start = loss.value_and_grad(params)
  if steps == 1:
    there = tree_math.add(params, tree_math.scale_to(rho, at_start))
    return loss.value(there) - start
  rises = []
  for ascent in range(restarts + 1):
    perturbation, grads = tree_math.zeros_like(params), at_start
    if ascent:
      key = jax.random.fold_in(jax.random.key(seed), ascent)
      perturbation = _on_sphere(key, params, rho)
      value, grads = loss.value_and_grad(tree_math.add(params, perturbation))
      rises.append(value - start)
    for _ in range(steps):
      perturbation = _climb(perturbation, grads, rho)
      value, grads = loss.value_and_grad(tree_math.add(params, perturbation))
      rises.append(value - start)
  return jnp.max(jnp.stack(rises))


@jax.jit
def _on_sphere(key: jax.Array, params: optax.Params, rho: Any) -> Any:
  direction = optax.tree.random_like(key, params, jax.random.normal)
  return tree_math.scale_to(rho, direction)


@jax.jit
def _climb(perturbation: Any, grads: Any, rho: Any) -> Any:
  """One ascent step, projected onto the ball."""
  step = tree_math.scale_to(_STEP_LENGTH * rho, grads)
  moved = tree_math.add(perturbation, step)
  length = tree_math.norm(moved)
  inside = jnp.minimum(1.0, rho / jnp.maximum(length, tree_math.STABILIZER))
  return jax.tree.map(lambda leaf: leaf * inside.astype(leaf.dtype), moved)
