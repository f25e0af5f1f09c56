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
_ENOUGH_RISES = 4  # of these steps; otherwise the step length is halved
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
  r"""Returns the largest rise of the loss, relative to each parameter.

  It is a lower bound of :math:`S`, by projected gradient ascent from
  :math:`\epsilon = 0`, with :math:`h = \nabla L(w + \epsilon)`.

  .. math::
    \begin{align*}
      S &= \max_{\|\epsilon / |w|\|_p \le \rho} L(w + \epsilon) - L(w) \\
      \epsilon &\leftarrow \epsilon + s\, |w|\, \text{sign}(h)
        \text{ for } p = \infty \\
      \epsilon &\leftarrow \epsilon + s\, |w|\, h / \|h\|
        \text{ for } p = 2
    \end{align*}

  Steps are clipped to +-rho * abs(w) for p = inf, and projected onto the
  ellipsoid for p = 2. The step length :math:`s` is :math:`2 \rho` at first.
  After every 5 steps of which fewer than 4 raised the loss, it is halved, and
  the search continues from the best perturbation.

  Args:
    value_fn: from the parameters, `args` and a batch to a scalar loss.
    params: where to measure, a pytree of floating-point arrays.
    rho: radius relative to the parameters, at least 0.
    p: norm, 2 or infinity.
    steps: number of ascent steps, at least 1.
    args: arrays that differ from call to call; see `sam_sharpness`.
    batches: data to average over; see `sam_sharpness`.

  Returns:
    The rise in the unit of the loss, at least 0; NaN if the loss is.

  .. note::
    The authors' code also mixes a quarter of the previous perturbation into
    each step, and halves at other steps. It measures 1024 training examples in
    batches of 128, optionally with normalized logits.

  References:
    Andriushchenko et al., `A Modern Look at the Relationship between Sharpness
    and Generalization <https://arxiv.org/abs/2302.07011>`_, ICML 2023.

  >>> value = lambda x: jnp.sum(x)
  >>> round(adaptive_sharpness(value, jnp.array([1.0, -3.0]), 0.1), 4)
  0.4
  """
  validation.check_number('rho', rho, at_least=0)
  validation.check_choice('p', p, (2, np.inf))
  validation.check_static_integer('steps', steps)
  loss = MeanLoss(value_fn, args, batches)
  start, grads = loss.value_and_grad(params)
  best = now = (float(start), tree_math.zeros_like(params), grads)
  length, rises = 2.0 * rho, 0
  for step in range(1, steps + 1):
    last, perturbation, grads = now
    perturbation = _move(perturbation, grads, params, length, rho, p)
    value, grads = loss.value_and_grad(tree_math.add(params, perturbation))
    now = (float(value), perturbation, grads)
    rises += now[0] > last
    if now[0] > best[0]:
      best = now
    if step % _CHECK_EVERY == 0:
      if rises < _ENOUGH_RISES:
        length, now = length / 2, best
      rises = 0
  return best[0] - float(start)


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
  r"""Returns the mean rise of the loss, relative to each parameter.

  From the paper of `adaptive_sharpness`, with normal :math:`z` for p = 2, and
  :math:`z` uniform in [-1, 1] for p = inf:

  .. math::
    S = \text{mean of } L(w + \rho\, |w| z) - L(w) \text{ over draws of } z

  Args:
    value_fn: from the parameters, `args` and a batch to a scalar loss.
    params: where to measure, a pytree of floating-point arrays.
    rho: radius relative to the parameters, at least 0.
    p: 2 or infinity.
    draws: number of draws, at least 1; all batches have the same ones.
    args: arrays that differ from call to call; see `sam_sharpness`.
    batches: data to average over; see `sam_sharpness`.
    seed: seed of the draws, an int.

  Returns:
    The rise in the unit of the loss, of either sign; NaN if the loss is.

  >>> value = lambda x: jnp.sum(x**2)
  >>> rise = average_adaptive_sharpness(value, jnp.ones(10_000), 0.5, draws=5)
  >>> round(rise / 10_000, 2)  # 0.5^2 of every entry
  0.25
  """
  validation.check_number('rho', rho, at_least=0)
  validation.check_choice('p', p, (2, np.inf))
  validation.check_static_integer('draws', draws)
  loss = MeanLoss(value_fn, args, batches)
  start = loss.value(params)
  keys = (jax.random.fold_in(jax.random.key(seed), i) for i in range(draws))
  places = (_draw(key, params, rho, p) for key in keys)
  return sum(float(loss.value(place) - start) for place in places) / draws


@functools.partial(jax.jit, static_argnames='p')
def _move(
  perturbation: Any, grads: Any, params: Any, length: Any, rho: Any, p: float
) -> Any:
  """One ascent step, projected onto the set of perturbations."""
  if p == 2:
    direction = tree_math.scale_to(length, grads)
    move = lambda e, h, w: e + jnp.abs(w) * h
    moved = jax.tree.map(move, perturbation, direction, params)
    return _onto_ellipsoid(moved, params, rho)

  def clipped(e: jax.Array, h: jax.Array, w: jax.Array) -> jax.Array:
    unit = jnp.abs(w)
    moved = e + (length * unit * jnp.sign(h)).astype(e.dtype)
    limit = (rho * unit).astype(e.dtype)
    return jnp.clip(moved, -limit, limit)

  return jax.tree.map(clipped, perturbation, grads, params)


def _onto_ellipsoid(perturbation: Any, params: Any, rho: Any) -> Any:
  """Projects onto norm(e / abs(w)) <= rho, in the Euclidean metric."""
  # Where w is 0, e is 0 too.
  units = jax.tree.map(lambda w: jnp.where(w == 0, 1, w), params)
  length = lambda e: tree_math.norm(jax.tree.map(jnp.divide, e, units))

  # The Karush-Kuhn-Tucker conditions leave one unknown number, lam.
  def projected(lam: Any) -> Any:
    factor = lambda w: w**2 / (w**2 + (2 * lam).astype(w.dtype))
    return jax.tree.map(lambda e, w: e * factor(w), perturbation, units)

  # norm(e * w / (w^2 + 2 lam)) is at most norm(e * w) / (2 lam).
  scaled = tree_math.norm(jax.tree.map(jnp.multiply, perturbation, params))
  highest = scaled / (2 * jnp.maximum(rho, tree_math.STABILIZER))

  def halve(_: Any, bounds: tuple[Any, Any]) -> tuple[Any, Any]:
    low, high = bounds
    middle = (low + high) / 2
    outside = length(projected(middle)) > rho
    return jnp.where(outside, middle, low), jnp.where(outside, high, middle)

  bounds = (jnp.zeros_like(highest), highest)
  _, found = jax.lax.fori_loop(0, _BISECTIONS, halve, bounds)
  inside = length(perturbation) <= rho
  return projected(jnp.where(inside, 0, found))


@functools.partial(jax.jit, static_argnames='p')
def _draw(key: jax.Array, params: Any, rho: Any, p: float) -> Any:
  """Draws perturbed parameters."""
  uniform = functools.partial(jax.random.uniform, minval=-1, maxval=1)
  sampler = jax.random.normal if p == 2 else uniform
  noise = optax.tree.random_like(key, params, sampler)
  return jax.tree.map(
    lambda w, z: w + (rho * jnp.abs(w)).astype(w.dtype) * z, params, noise
  )
