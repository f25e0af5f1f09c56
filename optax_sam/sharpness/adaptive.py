"""Adaptive sharpness: rises of the loss in units of each parameter's size."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_sam import validation
from optax_sam.sharpness.mean_loss import MeanLoss
from optax_sam.trees import tree_math

_CHECK_EVERY = 5  # steps
_ENOUGH_RISES = 4  # of them, or else the step length is halved
_BISECTIONS = 60


def adaptive_sharpness(
  value_fn: Callable[..., jax.Array],
  params: optax.Params,
  rho: float,
  *,
  p: float = np.inf,
  steps: int = 20,
  args: tuple[Any, ...] = (),
  batches: Iterable[Any] | None = None,
) -> float:
  """Returns how far the loss rises at worst, relative to each parameter.

  With `L` the loss, a lower bound of::

    max over norm_p(e / abs(w)) <= rho of  L(w + e) - L(w)

  by projected gradient ascent. With `h` the gradient at `w + e`, and the step
  length `s = 2 * rho` at first::

    p = inf:  e = clip(e + s * abs(w) * sign(h), -rho * abs(w), rho * abs(w))
    p = 2:    e = e + s * abs(w) * h / norm(h), projected onto the ellipsoid

  After every 5 steps of which fewer than 4 raised the loss, `s` is halved and
  the ascent goes on from the best `e`. Entries with `w_i = 0` stay. The program
  of the authors mixes a quarter of the previous `e` into each step and has
  checkpoints of other lengths: not reproduced here. It measures 1024 training
  examples in batches of 128, and may normalize the logits to mean 0 and
  2-norm 1, which is for `value_fn` to do.

  Args:
    value_fn: from the parameters, `args` and a batch to a scalar loss.
    params: where to measure, a pytree of floating-point arrays.
    rho: radius relative to the parameters, at least 0.
    p: of the norm, 2 or infinity.
    steps: number of ascent steps, a Python int of at least 1.
    args: arrays that differ from call to call; see `sam_sharpness`.
    batches: over which the loss is averaged; see `sam_sharpness`.

  Returns:
    The largest rise met, in the unit of the loss, at least 0; NaN where the
    loss is.

  Raises:
    ValueError: if a Python value is out of range, or there is no batch.

  References:
    Andriushchenko, Croce, Mueller, Hein, Flammarion, `A Modern Look at the
    Relationship between Sharpness and Generalization
    <https://arxiv.org/abs/2302.07011>`_, ICML 2023.

  >>> value = lambda x: jnp.sum(x)
  >>> round(adaptive_sharpness(value, jnp.array([1.0, -3.0]), 0.1), 4)
  0.4
  """
  validation.check_number('rho', rho, at_least=0)
  _check_p(p)
  validation.check_static_integer('steps', steps)
  loss = MeanLoss(value_fn, args, batches)
  move = functools.partial(_move, by_sign=bool(np.isinf(p)))
  perturbation = tree_math.zeros_like(params)
  start, grads = loss.value_and_grad(params)
  best = last = float(start)
  best_place = (perturbation, grads)
  length, rises = 2.0 * rho, 0
  for step in range(1, steps + 1):
    perturbation = move(perturbation, grads, params, length, rho)
    value, grads = loss.value_and_grad(tree_math.add(params, perturbation))
    now = float(value)
    rises += now > last
    last = now
    if now > best:
      best, best_place = now, (perturbation, grads)
    if step % _CHECK_EVERY == 0:
      if rises < _ENOUGH_RISES:
        length /= 2
        (perturbation, grads), last = best_place, best
      rises = 0
  return best - float(start)


def average_adaptive_sharpness(
  value_fn: Callable[..., jax.Array],
  params: optax.Params,
  rho: float,
  *,
  p: float = 2,
  draws: int = 20,
  args: tuple[Any, ...] = (),
  batches: Iterable[Any] | None = None,
  seed: int = 0,
) -> float:
  """Returns how far the loss rises on average, relative to each parameter.

  With `L` the loss, the mean over draws of `e` of::

    L(w + e) - L(w)
    p = 2:    e_i ~ rho * abs(w_i) * Normal(0, 1)
    p = inf:  e_i ~ rho * abs(w_i) * Uniform(-1, 1)

  Args:
    value_fn: from the parameters, `args` and a batch to a scalar loss.
    params: where to measure, a pytree of floating-point arrays.
    rho: radius relative to the parameters, at least 0.
    p: 2 or infinity.
    draws: number of draws, a Python int of at least 1.
    args: arrays that differ from call to call; see `sam_sharpness`.
    batches: over which the loss is averaged, all with the same draws; see
      `sam_sharpness`.
    seed: of the draws, an int.

  Returns:
    The mean rise in the unit of the loss, which can be below 0; NaN where the
    loss is.

  Raises:
    ValueError: if a Python value is out of range, or there is no batch.

  References:
    Andriushchenko, Croce, Mueller, Hein, Flammarion, `A Modern Look at the
    Relationship between Sharpness and Generalization
    <https://arxiv.org/abs/2302.07011>`_, ICML 2023.

  >>> value = lambda x: jnp.sum(x**2)
  >>> rise = average_adaptive_sharpness(value, jnp.ones(10_000), 0.5, draws=5)
  >>> round(rise / 10_000, 2)  # 0.5^2 of every entry
  0.25
  """
  validation.check_number('rho', rho, at_least=0)
  _check_p(p)
  validation.check_static_integer('draws', draws)
  loss = MeanLoss(value_fn, args, batches)
  start = loss.value(params)
  total = 0.0
  for draw in range(draws):
    key = jax.random.fold_in(jax.random.key(seed), draw)
    there = _draw(key, params, rho, uniform=bool(np.isinf(p)))
    total += float(loss.value(there) - start)
  return total / draws


def _check_p(p: float) -> None:
  if p not in (2, np.inf):
    msg = f'p must be 2 or infinity, got {p!r}: write p=2 or p=np.inf'
    raise ValueError(msg)


@functools.partial(jax.jit, static_argnames='by_sign')
def _move(
  perturbation: Any,
  grads: Any,
  params: Any,
  length: Any,
  rho: Any,
  *,
  by_sign: bool,
) -> Any:
  """One ascent step, projected onto the set of perturbations."""
  if by_sign:

    def clipped(e: jax.Array, h: jax.Array, w: jax.Array) -> jax.Array:
      unit = jnp.abs(w)
      moved = e + (length * unit * jnp.sign(h)).astype(e.dtype)
      limit = (rho * unit).astype(e.dtype)
      return jnp.clip(moved, -limit, limit)

    return jax.tree.map(clipped, perturbation, grads, params)
  direction = tree_math.scale_to(length, grads)
  moved = jax.tree.map(
    lambda e, h, w: e + jnp.abs(w) * h, perturbation, direction, params
  )
  return _onto_ellipsoid(moved, params, rho)


def _onto_ellipsoid(perturbation: Any, params: Any, rho: Any) -> Any:
  """Projects onto norm(e / abs(w)) <= rho, in the Euclidean metric.

  The condition of Karush, Kuhn and Tucker leaves one number, lam, to be found.
  """

  def projected(lam: Any) -> Any:
    return jax.tree.map(
      lambda e, w: (
        e * jnp.where(w == 0, 0, w**2 / (w**2 + (2 * lam).astype(w.dtype)))
      ),
      perturbation,
      params,
    )

  def length(e: Any) -> jax.Array:
    relative = jax.tree.map(
      lambda e, w: jnp.where(w == 0, 0, e / jnp.where(w == 0, 1, w)), e, params
    )
    return tree_math.norm(relative)

  scaled = jax.tree.map(lambda e, w: e * w, perturbation, params)
  # norm(e * w / (w^2 + 2 lam)) is at most norm(e * w) / (2 lam).
  highest = tree_math.norm(scaled) / (
    2 * jnp.maximum(rho, tree_math.STABILIZER)
  )

  def halve(_: Any, bounds: tuple[Any, Any]) -> tuple[Any, Any]:
    low, high = bounds
    middle = (low + high) / 2
    outside = length(projected(middle)) > rho
    return (
      jnp.where(outside, middle, low),
      jnp.where(outside, high, middle),
    )

  _, found = jax.lax.fori_loop(
    0, _BISECTIONS, halve, (jnp.zeros_like(highest), highest)
  )
  inside = length(perturbation) <= rho
  return projected(jnp.where(inside, 0, found))


@functools.partial(jax.jit, static_argnames='uniform')
def _draw(key: jax.Array, params: Any, rho: Any, *, uniform: bool) -> Any:
  def sampler(key: jax.Array, shape: Any, dtype: Any) -> jax.Array:
    if uniform:
      return jax.random.uniform(key, shape, dtype, minval=-1, maxval=1)
    return jax.random.normal(key, shape, dtype)

  noise = optax.tree.random_like(key, params, sampler)
  return jax.tree.map(
    lambda w, z: w + (rho * jnp.abs(w)).astype(w.dtype) * z, params, noise
  )
