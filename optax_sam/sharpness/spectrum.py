"""The whole spectrum of the Hessian: its trace and its density."""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_sam import validation
from optax_sam.sharpness.mean_loss import MeanLoss, hessian_product
from optax_sam.trees import tree_math

_VARIANCE = 1e-5  # of the density's Gaussians, in units of the range


class Estimate(NamedTuple):
  """A mean over random draws.

  Attributes:
    value: the mean.
    standard_error: its own standard deviation; NaN for one draw.
  """

  value: float
  standard_error: float


class Density(NamedTuple):
  """A spectral density, as a sum of Gaussians.

  Attributes:
    nodes: (probes, steps) numbers, the centres of the Gaussians.
    weights: alike, their shares, which sum to 1 for every probe.
    size: number of eigenvalues there are.
  """

  nodes: np.ndarray
  weights: np.ndarray
  size: int

  def at(self, values: Any, variance: float | None = None) -> np.ndarray:
    """Returns the density at some values.

    Args:
      values: an array of them.
      variance: of the Gaussians; 1e-5 times the range of the nodes or 1,
        whichever is larger, if None.

    Returns:
      An array of the shape of `values`, whose integral over all of them is 1.
    """
    if variance is None:
      variance = _VARIANCE * max(1.0, float(np.ptp(self.nodes)))
    away = np.asarray(values)[..., None, None] - self.nodes
    heights = np.exp(-(away**2) / (2 * variance))
    total = np.sum(self.weights * heights, axis=(-2, -1))
    return total / len(self.nodes) / math.sqrt(2 * math.pi * variance)

  def trace(self) -> float:
    """Returns the trace of the Hessian that the nodes stand for."""
    return self.size * float(np.mean(np.sum(self.weights * self.nodes, axis=1)))


def hessian_trace(
  value_fn: Callable[..., jax.Array],
  params: optax.Params,
  *,
  probes: int | None = 64,
  args: tuple[Any, ...] = (),
  batches: Iterable[Any] | None = None,
  seed: int = 0,
) -> Estimate:
  """Returns the trace of the Hessian, estimated with a standard error or exact.

  With `H` the Hessian, and `z` of -1 and 1 at random (Hutchinson), the mean
  over probes of::

    dot(z, H z)

  Without a number of probes, `z` is 1 at one parameter and 0 at all others, for
  each of them in turn, and the sum is the trace itself: for small models, as it
  takes as many products with the Hessian as there are parameters.

  One probe at a time: beside the parameters two vectors of their size.

  Args:
    value_fn: from the parameters, `args` and a batch to a scalar loss.
    params: where to measure, a pytree of floating-point arrays.
    probes: number of draws, a Python int of at least 1, or None for the exact
      trace.
    args: arrays that differ from call to call; see `sam_sharpness`.
    batches: over which the loss is averaged; see `sam_sharpness`.
    seed: of the draws, an int.

  Returns:
    The mean and its standard error (`Estimate`), which is 0 where the Hessian
    is diagonal or the trace exact; NaN where the Hessian isn't finite.

  Raises:
    ValueError: if a Python value is out of range, or there is no batch.

  References:
    Yao, Gholami, Keutzer, Mahoney, `PyHessian: Neural Networks Through the
    Lens of the Hessian <https://arxiv.org/abs/1912.07145>`_, 2020.

  >>> value = lambda x: x[0] ** 2 - 3 * x[1] ** 2
  >>> hessian_trace(value, jnp.ones(2))
  Estimate(value=-4.0, standard_error=0.0)
  """
  if probes is not None:
    validation.check_static_integer('probes', probes)
  loss = MeanLoss(value_fn, args, batches)
  if probes is None:
    vectors = (_axis(i, params) for i in range(tree_math.size(params)))
  else:
    keys = (jax.random.fold_in(jax.random.key(seed), i) for i in range(probes))
    vectors = (_signs(key, params) for key in keys)
  products = [
    tree_math.dot(vector, loss.hessian_product(params, vector))
    for vector in vectors
  ]
  found = np.asarray(jnp.stack(products), np.float64)
  if not np.isfinite(found).all():
    return Estimate(math.nan, math.nan)
  if probes is None:
    return Estimate(float(np.sum(found)), 0.0)
  error = math.nan
  if probes > 1:
    error = float(np.std(found, ddof=1)) / math.sqrt(probes)
  return Estimate(float(np.mean(found)), error)


def spectral_density(
  value_fn: Callable[..., jax.Array],
  params: optax.Params,
  *,
  steps: int = 30,
  probes: int = 10,
  args: tuple[Any, ...] = (),
  batches: Iterable[Any] | None = None,
  seed: int = 0,
) -> Density:
  """Returns the density of the Hessian's eigenvalues, by Lanczos quadrature.

  From each of some vectors of -1 and 1 at random, Lanczos iteration with full
  reorthogonalization by matfree gives a tridiagonal matrix. Its eigenvalues are
  the nodes `t`, the squared first entries of its eigenvectors the weights `m`;
  the density at `x` is the mean over probes of::

    sum_j m_j * Normal(x; mean t_j, variance sigma^2)
    sigma^2 = 1e-5 * max(1, largest - smallest node)

  Keeps `steps` vectors of the size of the parameters, and all batches, on the
  device: 10 GB for 100 steps on 25 million parameters. Needs
  `optax-sam[sharpness]`.

  Args:
    value_fn: from the parameters, `args` and a batch to a scalar loss.
    params: where to measure, a pytree of P numbers in floating-point arrays.
    steps: of the iteration, a Python int in [1, P].
    probes: number of random vectors, one after the other, a Python int of at
      least 1.
    args: arrays that differ from call to call; see `sam_sharpness`.
    batches: over which the loss is averaged; see `sam_sharpness`.
    seed: of the vectors, an int.

  Returns:
    Nodes and weights (`Density`), whose `at` is the density, and whose `trace`
    another estimate of the trace.

  Raises:
    ValueError: if a Python value is out of range, or there is no batch.

  References:
    Ghorbani, Krishnan, Xiao, `An Investigation into Neural Net Optimization via
    Hessian Eigenvalue Density <https://arxiv.org/abs/1901.10159>`_, ICML 2019.

  >>> value = lambda x: x[0] ** 2 - 3 * x[1] ** 2
  >>> density = spectral_density(value, jnp.ones(2), steps=2)
  >>> density.nodes[0].round(3).tolist()
  [-6.0, 2.0]
  """
  validation.check_static_integer('probes', probes)
  validation.check_static_integer('steps', steps)
  size = tree_math.size(params)
  if steps > size:
    msg = f'steps must be at most the number of parameters, {size}, got {steps}'
    raise ValueError(msg)
  loss = MeanLoss(value_fn, args, batches)
  nodes, weights = [], []
  for probe in range(probes):
    start = _signs(jax.random.fold_in(jax.random.key(seed), probe), params)
    values, basis, _ = _tridiagonal(loss, params, steps, start)
    if not len(values):  # the Hessian isn't finite
      values, basis = np.full(steps, np.nan), np.full((1, steps), np.nan)
    missing = (0, steps - len(values))
    nodes.append(np.pad(values, missing, mode='edge'))
    weights.append(np.pad(basis[0] ** 2, missing))
  return Density(np.stack(nodes), np.stack(weights), size)


def lanczos(
  loss: MeanLoss, params: optax.Params, steps: int, start: Any
) -> tuple[np.ndarray, np.ndarray]:
  """Returns approximate eigenvalues, ascending, and bounds of their errors.

  There are fewer than `steps` if the start vector reaches no more, as with
  equal eigenvalues, and none if the Hessian isn't finite.
  """
  values, basis, left_over = _tridiagonal(loss, params, steps, start)
  last = basis[-1] if len(values) else values
  return values, left_over * np.abs(last)


def _tridiagonal(
  loss: MeanLoss, params: optax.Params, steps: int, start: Any
) -> tuple[np.ndarray, np.ndarray, float]:
  """Returns eigenvalues and eigenvectors of a small matrix, and what is left.

  The small matrix is the Hessian within the space that the iteration spans.
  """
  value_fn, calls, rows = loss.stacked()
  found, left_over = _iterate(value_fn, steps, params, calls, rows, start)
  matrix = np.asarray(found, np.float64)
  # Where no new direction is left, matfree divides by zero from there on.
  usable = next(
    (
      m for m in range(steps) if not np.isfinite(matrix[: m + 1, : m + 1]).all()
    ),
    steps,
  )
  values, basis = np.linalg.eigh(matrix[:usable, :usable])
  return values, basis, float(left_over) if usable == steps else 0.0


@functools.partial(jax.jit, static_argnums=(0, 1))
def _iterate(
  value_fn: Any, steps: int, params: Any, calls: Any, rows: Any, start: Any
) -> tuple[jax.Array, jax.Array]:
  from matfree import decomp

  _, unravel = jax.flatten_util.ravel_pytree(params)
  total = sum(jnp.sum(r) for r in rows)

  def product(vector: jax.Array) -> jax.Array:
    tangent = unravel(vector)

    def add(mean: Any, call: Any) -> tuple[Any, None]:
      args, share = call
      found = hessian_product(value_fn, params, args, tangent)
      found = jax.flatten_util.ravel_pytree(found)[0]
      return mean + share.astype(mean.dtype) * found, None

    mean = jnp.zeros_like(vector)
    for of_one_shape, counts in zip(calls, rows, strict=True):
      mean, _ = jax.lax.scan(add, mean, (of_one_shape, counts / total))
    return mean

  tridiagonalize: Any = decomp.tridiag_sym(steps, custom_vjp=False)
  found = tridiagonalize(product, jax.flatten_util.ravel_pytree(start)[0])
  return found.J_small, jnp.linalg.norm(found.residual)


@jax.jit
def _signs(key: jax.Array, params: Any) -> Any:
  return optax.tree.random_like(key, params, jax.random.rademacher)


@jax.jit
def _axis(position: int, params: Any) -> Any:
  """Returns 1 at one of all numbers in the leaves, and 0 elsewhere."""
  leaves, structure = jax.tree.flatten(params)
  found, first = [], 0
  for leaf in leaves:
    here = jnp.arange(leaf.size) == position - first
    found.append(here.astype(leaf.dtype).reshape(leaf.shape))
    first += leaf.size
  return jax.tree.unflatten(structure, found)
