"""Measures of sharpness: the largest rise nearby, the largest curvature.

Call them in evaluation mode on fixed data, and give the number of examples and
the radius with every figure: a mean of maxima over batches isn't a maximum
over all data. Both call compiled pieces from the host, where XLA's CPU backend
is at its fastest.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_sam import numerics, validation

_STEP_LENGTH = 0.1  # of an ascent step, in units of the radius


def sam_sharpness(
  value_fn: Callable[..., jax.Array],
  params: optax.Params,
  rho: float,
  *,
  steps: int = 1,
  args: tuple[Any, ...] = (),
) -> float:
  """Returns how far the loss rises within a ball around the parameters.

  With `L` the loss and norms over all leaves together, a lower bound of::

    max over norm(e) <= rho of  L(w + e) - L(w)

  One step goes to the end of the gradient, `e = rho * g / norm(g)`, as SAM
  does. More steps walk `0.1 * rho` along the normalized gradient each and are
  projected onto the ball; the largest rise on the way counts. The program
  tml-epfl/understanding-sam measures batches of 128: another figure than that
  of all data at once.

  Args:
    value_fn: from the parameters, and `args`, to a scalar loss.
    params: where to measure, a pytree of floating-point arrays.
    rho: radius of the ball in the unit of the parameters, at least 0.
    steps: number of ascent steps, a Python int of at least 1; 20 come close to
      the maximum.
    args: arrays that differ from call to call, such as running statistics or
      a batch. For one and the same `value_fn` nothing is compiled anew.

  Returns:
    The rise in the unit of the loss, which can be below 0 for one step; NaN
    where the loss is.

  Raises:
    ValueError: if a Python value is out of range.

  References:
    Andriushchenko, Flammarion, `Towards Understanding Sharpness-Aware
    Minimization <https://arxiv.org/abs/2206.06232>`_, ICML 2022.

  >>> value = lambda x: 0.5 * jnp.sum(x**2)
  >>> round(sam_sharpness(value, jnp.array([3.0, 4.0]), 1.0), 4)  # at 6/5 x
  5.5
  """
  validation.check_number('rho', rho, at_least=0)
  validation.check_static_integer('steps', steps)
  start, grads = _value_and_grad(value_fn, params, args)
  if steps == 1:
    there = numerics.add(params, numerics.scale_to(rho, grads))
    return float(_value(value_fn, there, args) - start)
  perturbation = numerics.zeros_like(params)
  rises = []
  for _ in range(steps):
    perturbation = _climb(perturbation, grads, rho)
    there = numerics.add(params, perturbation)
    value, grads = _value_and_grad(value_fn, there, args)
    rises.append(value - start)
  return float(jnp.max(jnp.stack(rises)))


def top_eigenvalue(
  value_fn: Callable[..., jax.Array],
  params: optax.Params,
  *,
  args: tuple[Any, ...] = (),
  tolerance: float = 1e-3,
  max_iterations: int = 1000,
  seed: int = 0,
) -> float:
  """Returns the largest algebraic eigenvalue of the Hessian of the loss.

  With `H` the Hessian over all leaves together::

    max over norm(v) = 1 of  dot(v, H v)

  Not the largest in size, as of a power iteration. Lanczos iteration of SciPy
  over Hessian-vector products; the Hessian itself is never formed. Needs SciPy.

  Args:
    value_fn: from the parameters, and `args`, to a scalar loss.
    params: where to measure, a pytree of floating-point arrays.
    args: arrays that differ from call to call, as in `sam_sharpness`.
    tolerance: relative accuracy, above 0.
    max_iterations: number of restarts of the iteration at most, a Python int
      of at least 1.
    seed: of the start vector, an int.

  Returns:
    The eigenvalue, below 0 if the loss curves down everywhere; NaN where the
    Hessian isn't finite.

  Raises:
    ValueError: if a Python value is out of range.
    RuntimeError: if the iteration doesn't converge.

  References:
    Yao, Gholami, Keutzer, Mahoney, `PyHessian: Neural Networks Through the
    Lens of the Hessian <https://arxiv.org/abs/1912.07145>`_, 2020.

  >>> value = lambda x: x[0] ** 2 - 3 * x[1] ** 2
  >>> round(top_eigenvalue(value, jnp.array([1.0, 1.0])), 4)
  2.0
  """
  import numpy as np
  from scipy.sparse import linalg

  validation.check_number('tolerance', tolerance, above=0)
  validation.check_static_integer('max_iterations', max_iterations)
  flat, unravel = jax.flatten_util.ravel_pytree(params)

  def product(vector: Any) -> Any:
    tangent = unravel(jnp.asarray(vector, flat.dtype).reshape(-1))
    found = _hessian_vector_product(value_fn, params, args, tangent)
    return np.asarray(found, np.float64)

  start = np.random.default_rng(seed).standard_normal(flat.size)
  first = product(start)
  if not np.all(np.isfinite(first)):
    return float('nan')
  if flat.size == 1:
    return float(first[0] / start[0])
  if not np.any(first):
    return 0.0  # a random vector that vanishes: the Hessian is zero
  operator: Any = linalg.LinearOperator
  hessian = operator((flat.size,) * 2, product, dtype=np.float64)
  try:
    values = linalg.eigsh(
      hessian,
      k=1,
      which='LA',
      v0=start,
      tol=tolerance,
      maxiter=max_iterations,
      return_eigenvectors=False,
    )
  except linalg.ArpackNoConvergence as error:
    msg = (
      f'the top eigenvalue did not converge within max_iterations='
      f'{max_iterations} at tolerance={tolerance}; raise either.'
    )
    raise RuntimeError(msg) from error
  return float(values[0])


@functools.partial(jax.jit, static_argnums=0)
def _value(
  value_fn: Callable[..., jax.Array], params: optax.Params, args: Any
) -> jax.Array:
  return value_fn(params, *args)


@functools.partial(jax.jit, static_argnums=0)
def _value_and_grad(
  value_fn: Callable[..., jax.Array], params: optax.Params, args: Any
) -> tuple[jax.Array, optax.Updates]:
  return jax.value_and_grad(value_fn)(params, *args)


@functools.partial(jax.jit, static_argnums=0)
def _hessian_vector_product(
  value_fn: Callable[..., jax.Array],
  params: optax.Params,
  args: Any,
  tangent: optax.Params,
) -> jax.Array:
  """Forward over reverse; returns one flat vector."""

  def gradient(params: optax.Params) -> optax.Updates:
    return jax.grad(value_fn)(params, *args)

  found = jax.jvp(gradient, (params,), (tangent,))[1]
  return jax.flatten_util.ravel_pytree(found)[0]


@jax.jit
def _climb(
  perturbation: optax.Updates, grads: optax.Updates, rho: Any
) -> optax.Updates:
  """One ascent step, projected onto the ball."""
  moved = numerics.add(
    perturbation, numerics.scale_to(_STEP_LENGTH * rho, grads)
  )
  length = numerics.norm(moved)
  inside = jnp.minimum(1.0, rho / jnp.maximum(length, numerics.STABILIZER))
  return jax.tree.map(lambda leaf: leaf * inside.astype(leaf.dtype), moved)
