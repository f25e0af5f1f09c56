"""The largest eigenvalues of the Hessian."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from optax_sam import validation
from optax_sam.sharpness.mean_loss import MeanLoss
from optax_sam.sharpness.spectrum import lanczos
from optax_sam.trees import tree_math

_FIRST_STEPS = 32
_MOST_STEPS = 512
_VECTORS = 20


def top_eigenvalue(
  value_fn: Callable[..., jax.Array],
  params: optax.Params,
  *,
  args: tuple[Any, ...] = (),
  batches: Iterable[Any] | None = None,
  tolerance: float = 1e-3,
  max_iterations: int = 1000,
  seed: int = 0,
) -> float:
  r"""Returns the largest algebraic eigenvalue of the Hessian of the loss.

  .. math::
    \lambda = \max_{\|v\| = 1} v^\top H v, \quad H = \nabla^2 L(w)

  The Hessian is over all leaves together. SciPy's restarted Lanczos iteration
  finds it, with 20 vectors in float64 on the host; a power iteration would
  return the eigenvalue with the largest absolute value.

  Args:
    value_fn: from the parameters, `args` and a batch to a scalar loss.
    params: where to measure, a pytree of floating-point arrays.
    args: arrays that differ from call to call; see `sam_sharpness`.
    batches: data to average over; see `sam_sharpness`.
    tolerance: relative accuracy, above 0.
    max_iterations: number of restarts before a RuntimeError, at least 1.
    seed: seed of the start vector, an int.

  Returns:
    The eigenvalue; NaN if the Hessian isn't finite.

  References:
    Yao, Gholami, Keutzer, Mahoney, `PyHessian: Neural Networks Through the
    Lens of the Hessian <https://arxiv.org/abs/1912.07145>`_, 2020.

  >>> value = lambda x: x[0] ** 2 - 3 * x[1] ** 2
  >>> round(top_eigenvalue(value, jnp.array([1.0, 1.0])), 4)
  2.0
  """
  validation.check_number('tolerance', tolerance, above=0)
  validation.check_static_integer('max_iterations', max_iterations)
  loss = MeanLoss(value_fn, args, batches)
  return float(_arpack(loss, params, 1, tolerance, seed, max_iterations)[0])


def top_eigenvalues(
  value_fn: Callable[..., jax.Array],
  params: optax.Params,
  k: int,
  *,
  args: tuple[Any, ...] = (),
  batches: Iterable[Any] | None = None,
  tolerance: float = 1e-3,
  max_vectors: int | None = None,
  seed: int = 0,
) -> np.ndarray:
  """Returns the largest algebraic eigenvalues of the Hessian of the loss.

  matfree's Lanczos iteration finds them, with full reorthogonalization against
  spurious copies. It stores all batches, and a vector for each step, on the
  device; 32 steps are doubled until the tolerance is reached, at most to 512.
  `max_vectors`, for large models, selects the restarted iteration of
  `top_eigenvalue`. Needs `optax-sam[sharpness]`.

  Args:
    value_fn: from the parameters, `args` and a batch to a scalar loss.
    params: where to measure, a pytree of P numbers in floating-point arrays.
    k: number of eigenvalues, in [1, P].
    args: arrays that differ from call to call; see `sam_sharpness`.
    batches: data to average over; see `sam_sharpness`.
    tolerance: accuracy relative to the largest absolute value, above 0.
    max_vectors: largest number of vectors, at least `k + 2`; None for no bound.
    seed: seed of the start vector, an int.

  Returns:
    k float64 numbers, the largest first; NaN if the Hessian isn't finite.

  References:
    Krämer et al., `Gradients of Functions of Large Matrices
    <https://arxiv.org/abs/2405.17277>`_, NeurIPS 2024, for matfree.

  >>> value = lambda x: 2 * x[0] ** 2 + x[1] ** 2 - 3 * x[2] ** 2
  >>> top_eigenvalues(value, jnp.ones(3), 2).round(4).tolist()
  [4.0, 2.0]
  """
  size = tree_math.size(params)
  validation.check_static_integer('k', k)
  if k > size:
    msg = f'k must be at most the number of parameters, {size}, got {k}'
    raise ValueError(msg)
  validation.check_number('tolerance', tolerance, above=0)
  loss = MeanLoss(value_fn, args, batches)
  if max_vectors is not None:
    validation.check_static_integer('max_vectors', max_vectors, at_least=k + 2)
    return _arpack(loss, params, k, tolerance, seed, vectors=max_vectors)
  start = optax.tree.random_like(jax.random.key(seed), params)
  steps = min(size, max(_FIRST_STEPS, 2 * k))
  while True:
    values, basis, residual = lanczos(loss, params, steps, start)
    if len(values) < steps:
      return _arpack(loss, params, k, tolerance, seed)
    values, errors = values[::-1][:k], residual * np.abs(basis[-1][::-1][:k])
    # With all directions there is no residual.
    if steps == size or (errors <= tolerance * np.abs(values).max()).all():
      return values
    if steps >= _MOST_STEPS:
      msg = (
        f'the {k} top eigenvalues did not converge within {steps} steps at '
        f'tolerance={tolerance}; raise it, or give max_vectors={steps}'
      )
      raise RuntimeError(msg)
    steps = min(2 * steps, size, _MOST_STEPS)


def _arpack(
  loss: MeanLoss,
  params: optax.Params,
  k: int,
  tolerance: float,
  seed: int,
  max_iterations: int = 1000,
  vectors: int | None = None,
) -> np.ndarray:
  """Returns the k largest eigenvalues by restarted iteration in SciPy."""
  from scipy.sparse import linalg

  flat, unravel = ravel_pytree(params)

  def product(vector: Any) -> Any:
    tangent = unravel(jnp.asarray(vector, flat.dtype).reshape(-1))
    found = loss.hessian_product(params, tangent)
    return np.asarray(ravel_pytree(found)[0], np.float64)

  start = np.random.default_rng(seed).standard_normal(flat.size)
  first = product(start)
  if not np.all(np.isfinite(first)):
    return np.full(k, np.nan)
  if not np.any(first):
    return np.zeros(k)  # H v = 0 for a random v: the Hessian is zero
  if k + 1 >= flat.size:  # more than ARPACK can compute
    columns = [product(column) for column in np.eye(flat.size)]
    return np.linalg.eigvalsh(np.stack(columns))[::-1][:k]
  operator: Any = linalg.LinearOperator
  hessian = operator((flat.size,) * 2, product, dtype=np.float64)
  vectors = min(vectors or max(_VECTORS, k + 2), flat.size)
  settings = {'v0': start, 'tol': tolerance, 'maxiter': max_iterations}
  try:
    values = linalg.eigsh(
      hessian, k, ncv=vectors, which='LA', return_eigenvectors=False, **settings
    )
  except linalg.ArpackNoConvergence as error:
    msg = (
      f'the top eigenvalue did not converge within max_iterations='
      f'{max_iterations} restarts at tolerance={tolerance}; raise the tolerance'
    )
    raise RuntimeError(msg) from error
  return np.sort(values)[::-1]
