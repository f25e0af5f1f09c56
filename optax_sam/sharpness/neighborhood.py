"""The largest rise of the loss within a ball (SAM) or a box (Keskar)."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from optax_sam import validation
from optax_sam.sharpness.mean_loss import MeanLoss
from optax_sam.trees import tree_math

_STEP_LENGTH = 0.1  # of an ascent step, in units of the radius
_LARGE = 10**7  # parameters, too many for SciPy's float64 copies
_SIGN_STEP = 0.2  # of a step of sign ascent, in units of the box


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
  r"""Returns the largest rise of the loss within a ball around the parameters.

  It is a lower bound of :math:`S`, with one norm over all leaves together.

  .. math::
    S = \max_{\|\epsilon\| \le \rho} L(w + \epsilon) - L(w)

  One step is that of SAM. More steps have the length `0.1 * rho` along the
  normalized gradient and are projected onto the ball; the result is the largest
  of their rises. The authors use `per_batch`, with batches of 128.

  Args:
    value_fn: from the parameters, `args` and a batch to a scalar loss.
    params: where to measure, a pytree of floating-point arrays.
    rho: radius of the ball in the unit of the parameters, at least 0.
    steps: number of ascent steps, at least 1; 20 come close to the maximum.
    restarts: number of further ascents, from random points on the sphere; at
      least 0, and 0 with one step.
    args: arrays that differ from call to call, such as running statistics or
      a batch, so that nothing is recompiled for the same `value_fn`.
    batches: data to average over by rows, pytrees with one row per example in
      every leaf; each is passed to `value_fn` after `args`.
    per_batch: whether to average the largest rises of single batches, in place
      of the largest rise of the mean loss.
    seed: seed of the random starts, an int.

  Returns:
    The rise in the unit of the loss; NaN if the loss is.

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
    msg = f'restarts must be 0 with steps=1, got {restarts}: write steps=20'
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


def epsilon_sharpness(
  value_fn: Callable[..., jax.Array],
  params: optax.Params,
  epsilon: float = 1e-3,
  *,
  iterations: int = 10,
  optimizer: Literal['auto', 'l-bfgs-b', 'sign'] = 'auto',
  args: tuple[Any, ...] = (),
  batches: Iterable[Any] | None = None,
) -> float:
  r"""Returns Keskar sharpness: the largest rise in a box, in percent.

  It is a lower bound of :math:`S`, with c for the argument `epsilon`.

  .. math::
    S = 100 \max_{|\epsilon_i| \le c\, (|w_i| + 1)}
      (L(w + \epsilon) - L(w)) / (1 + L(w))

  Args:
    value_fn: from the parameters, `args` and a batch to a scalar loss above -1.
    params: where to measure, a pytree of floating-point arrays.
    epsilon: size of the box relative to the parameters, at least 0. The
      paper's values 1e-3 and 5e-4 are unverified.
    iterations: number of iterations, at least 1.
    optimizer: 'l-bfgs-b' of SciPy, with about 25 vectors in float64 on the
      host; 'sign', our projected ascent along the sign of the gradient, a fifth
      of the box per step; or 'auto', the former below 1e7 parameters.
    args: arrays that differ from call to call; see `sam_sharpness`.
    batches: data to average over; see `sam_sharpness`.

  Returns:
    The relative rise in percent, at least 0; NaN if the loss is.

  References:
    Keskar et al., `On Large-Batch Training for Deep Learning: Generalization
    Gap and Sharp Minima <https://arxiv.org/abs/1609.04836>`_, ICLR 2017.

  >>> value = lambda x: jnp.sum(x**2)
  >>> round(epsilon_sharpness(value, jnp.ones(1), 0.5), 3)  # (4 - 1) / (1 + 1)
  150.0
  """
  validation.check_number('epsilon', epsilon, at_least=0)
  validation.check_static_integer('iterations', iterations)
  validation.check_choice('optimizer', optimizer, ('auto', 'l-bfgs-b', 'sign'))
  loss = MeanLoss(value_fn, args, batches)
  if optimizer == 'auto':
    optimizer = 'l-bfgs-b' if tree_math.size(params) < _LARGE else 'sign'
  search = _by_bfgs if optimizer == 'l-bfgs-b' else _by_sign
  start = float(loss.value(params))
  highest = search(loss, params, epsilon, iterations)
  if not np.isfinite(start):
    return float('nan')
  return 100 * max(0.0, highest - start) / (1 + start)


def _rise(
  loss: MeanLoss, params: Any, rho: float, steps: int, restarts: int, seed: int
) -> jax.Array:
  start, at_start = loss.value_and_grad(params)
  if steps == 1:
    return loss.value(_ascended(params, at_start, rho)) - start
  rises = []
  for ascent in range(restarts + 1):
    perturbation, grads = tree_math.zeros_like(params), at_start
    if ascent:
      key = jax.random.fold_in(jax.random.key(seed), ascent)
      perturbation = _on_sphere(key, params, rho)
      value, grads = loss.value_and_grad(tree_math.add(params, perturbation))
      rises.append(value - start)
    for _ in range(steps):
      perturbation = _step(perturbation, grads, rho)
      value, grads = loss.value_and_grad(tree_math.add(params, perturbation))
      rises.append(value - start)
  return jnp.max(jnp.stack(rises))


# Jitted, so that not every operation on every shape compiles separately.
@jax.jit
def _ascended(params: optax.Params, grads: Any, rho: Any) -> Any:
  return tree_math.add(params, tree_math.scale_to(rho, grads))


@jax.jit
def _on_sphere(key: jax.Array, params: optax.Params, rho: Any) -> Any:
  direction = optax.tree.random_like(key, params, jax.random.normal)
  return tree_math.scale_to(rho, direction)


@jax.jit
def _step(perturbation: Any, grads: Any, rho: Any) -> Any:
  """One ascent step, projected onto the ball."""
  step = tree_math.scale_to(_STEP_LENGTH * rho, grads)
  moved = tree_math.add(perturbation, step)
  length = tree_math.norm(moved)
  inside = jnp.minimum(1.0, rho / jnp.maximum(length, tree_math.STABILIZER))
  return jax.tree.map(lambda leaf: leaf * inside.astype(leaf.dtype), moved)


def _by_bfgs(
  loss: MeanLoss, params: optax.Params, epsilon: float, iterations: int
) -> float:
  from scipy import optimize

  flat, unravel = ravel_pytree(params)
  center = np.asarray(flat, np.float64)
  box = epsilon * (np.abs(center) + 1)
  values = []

  def negative(place: np.ndarray) -> tuple[float, np.ndarray]:
    value, grads = loss.value_and_grad(unravel(jnp.asarray(place, flat.dtype)))
    values.append(float(value))
    return -float(value), -np.asarray(ravel_pytree(grads)[0], np.float64)

  if np.isfinite(center).all():
    bounds = np.stack([center - box, center + box], axis=1)
    optimize.fmin_l_bfgs_b(negative, center, bounds=bounds, maxiter=iterations)
  return max(values, default=float('nan'))


def _by_sign(
  loss: MeanLoss, params: optax.Params, epsilon: float, iterations: int
) -> float:
  place, values = params, []
  for _ in range(iterations):
    value, grads = loss.value_and_grad(place)
    values.append(float(value))
    place = _ascend(place, grads, params, epsilon)
  values.append(float(loss.value(place)))
  return max(values)


@jax.jit
def _ascend(place: Any, grads: Any, center: Any, epsilon: Any) -> Any:
  """One ascent step along the sign of the gradient, clipped to the box."""

  def move(leaf: jax.Array, grad: jax.Array, middle: jax.Array) -> jax.Array:
    box = jnp.asarray(epsilon, leaf.dtype) * (jnp.abs(middle) + 1)
    moved = leaf + _SIGN_STEP * box * jnp.sign(grad)
    return jnp.clip(moved, middle - box, middle + box)

  return jax.tree.map(move, place, grads, center)
