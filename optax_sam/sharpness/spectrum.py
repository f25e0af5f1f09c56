"""The whole spectrum of the Hessian: its trace and its density."""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from optax_sam import validation
from optax_sam.sharpness.mean_loss import MeanLoss, hessian_product
from optax_sam.trees import tree_math

_VARIANCE = 1e-5  # of the density's Gaussians, in units of the range


class Estimate(NamedTuple):
  """A mean over random draws.

  Attributes:
    value: the mean.
    standard_error: standard deviation of the mean; NaN for one draw.
  """

  value: float
  standard_error: float


class Density(NamedTuple):
  """A spectral density, as a sum of Gaussians.

  Attributes:
    nodes: centers of the Gaussians, shape (probes, steps).
    weights: their weights, which sum to 1 for every probe, in the same shape.
    size: number of eigenvalues of the Hessian.
  """

  nodes: np.ndarray
  weights: np.ndarray
  size: int

  def at(self, values: Any, variance: float | None = None) -> np.ndarray:
    """Returns the density, whose integral is 1, in the shape of `values`.

    `variance` is that of the Gaussians; by default 1e-5 times the larger of 1
    and the range of the nodes.
    """
    if variance is None:
      variance = _VARIANCE * max(1.0, float(np.ptp(self.nodes)))
    away = np.asarray(values)[..., None, None] - self.nodes
    heights = np.exp(-(away**2) / (2 * variance))
    total = np.sum(self.weights * heights, axis=(-2, -1))
    return total / len(self.nodes) / math.sqrt(2 * math.pi * variance)

  def trace(self) -> float:
    """Returns an estimate of the trace of the Hessian."""
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
  r"""Returns the trace of the Hessian, exact or with a standard error.

  Hutchinson's estimate is the mean over probes :math:`z` of random signs:

  .. math::
    \text{tr}(H) \approx \text{mean of } z^\top H z, \quad H = \nabla^2 L(w)

  Args:
    value_fn: from the parameters, `args` and a batch to a scalar loss.
    params: where to measure, a pytree of floating-point arrays.
    probes: number of draws, at least 1; None for the exact trace, the sum over
      all unit vectors.
    args: arrays that differ from call to call; see `sam_sharpness`.
    batches: data to average over; see `sam_sharpness`.
    seed: seed of the draws, an int.

  Returns:
    The mean and its standard error (`Estimate`), which is 0 if the Hessian is
    diagonal or the trace exact; NaN if the Hessian isn't finite.

  References:
    Yao, Gholami, Keutzer, Mahoney, `PyHessian: Neural Networks Through the
    Lens of the Hessian <https://arxiv.org/abs/1912.07145>`_, 2020.
    Krämer et al., `Gradients of Functions of Large Matrices
    <https://arxiv.org/abs/2405.17277>`_, NeurIPS 2024, for matfree.

  >>> value = lambda x: x[0] ** 2 - 3 * x[1] ** 2
  >>> hessian_trace(value, jnp.ones(2))
  Estimate(value=-4.0, standard_error=0.0)
  """
  loss = MeanLoss(value_fn, args, batches)
  product = functools.partial(loss.hessian_product, params)
  if probes is None:
    flat, unravel = ravel_pytree(params)
    one_hot = functools.partial(jax.nn.one_hot, dtype=flat.dtype)
    axis = jax.jit(lambda i: unravel(one_hot(i, flat.size)))
    vectors = (axis(i) for i in range(flat.size))
    products = [tree_math.dot(vector, product(vector)) for vector in vectors]
  else:
    validation.check_static_integer('probes', probes)
    from matfree import stochtrace

    # One draw at a time, because matfree holds all draws of a call in memory.
    draw = stochtrace.sampler_signs(params, num=1)
    term = stochtrace.monte_carlo_trace()
    estimate = stochtrace.estimator_monte_carlo(term, draw)
    keys = jax.random.split(jax.random.key(seed), probes)
    products = [estimate(product, key) for key in keys]
  found = np.asarray(jnp.stack(products), np.float64)
  if not np.isfinite(found).all():
    return Estimate(math.nan, math.nan)
  if probes is None:
    return Estimate(float(np.sum(found)), 0.0)
  deviation = float(np.std(found, ddof=1)) if probes > 1 else math.nan
  return Estimate(float(np.mean(found)), deviation / math.sqrt(probes))


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
  r"""Returns the density of the Hessian's eigenvalues, by Lanczos quadrature.

  From a random vector of signs, matfree's Lanczos iteration with full
  reorthogonalization gives a tridiagonal matrix. Its eigenvalues are the nodes
  :math:`t_j`, the squared first entries of its eigenvectors the weights
  :math:`m_j`. The density is the mean over such vectors (probes) of:

  .. math::
    \begin{align*}
      \phi(x) &= \sum_j m_j\, \text{Normal}(x; t_j, \sigma^2) \\
      \sigma^2 &= 10^{-5} \max(1, \max_j t_j - \min_j t_j)
    \end{align*}

  All batches and `steps` vectors are stored on the device: 10 GB for 100 steps
  and 25 million parameters. Needs `optax-sam[sharpness]`.

  Args:
    value_fn: from the parameters, `args` and a batch to a scalar loss.
    params: where to measure, a pytree of P numbers in floating-point arrays.
    steps: number of steps of the iteration, in [1, P].
    probes: number of random vectors, at least 1.
    args: arrays that differ from call to call; see `sam_sharpness`.
    batches: data to average over; see `sam_sharpness`.
    seed: seed of the vectors, an int.

  Returns:
    Nodes and weights (`Density`), with the density as its method `at`.

  References:
    Ghorbani, Krishnan, Xiao, `An Investigation into Neural Net Optimization via
    Hessian Eigenvalue Density <https://arxiv.org/abs/1901.10159>`_, ICML 2019.

  >>> value = lambda x: x[0] ** 2 - 3 * x[1] ** 2
  >>> spectral_density(value, jnp.ones(2), steps=2).nodes[0].round(3).tolist()
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
    start = _signs(jax.random.key(seed), probe, params)
    values, basis, _ = lanczos(loss, params, steps, start)
    if not len(values):  # the Hessian isn't finite
      values, basis = np.full(steps, np.nan), np.full((1, steps), np.nan)
    missing = (0, steps - len(values))
    nodes.append(np.pad(values, missing, mode='edge'))
    weights.append(np.pad(basis[0] ** 2, missing))
  return Density(np.stack(nodes), np.stack(weights), size)


def lanczos(
  loss: MeanLoss, params: optax.Params, steps: int, start: Any
) -> tuple[np.ndarray, np.ndarray, float]:
  """Returns eigenvalues (at most `steps`), eigenvectors and the residual."""
  calls = loss.stacked_calls()
  found, residual = _tridiagonalize(loss.value_fn, steps, params, calls, start)
  matrix = np.asarray(found, np.float64)
  # Once no new direction is left, matfree divides by zero.
  broken = np.argwhere(~np.isfinite(matrix))
  usable = broken.max(axis=1).min(initial=steps)
  values, basis = np.linalg.eigh(matrix[:usable, :usable])
  return values, basis, float(residual) if usable == steps else 0.0


@functools.partial(jax.jit, static_argnums=(0, 1))
def _tridiagonalize(
  value_fn: Any, steps: int, params: Any, calls: Any, start: Any
) -> tuple[jax.Array, jax.Array]:
  """Returns the Hessian in the space of the iteration, and the residual."""
  from matfree import decomp

  _, unravel = ravel_pytree(params)
  total = sum(jnp.sum(rows) for _, rows in calls)

  def product(vector: jax.Array) -> jax.Array:
    tangent = unravel(vector)

    def add(mean: Any, call: Any) -> tuple[Any, None]:
      args, weight = call
      found = ravel_pytree(hessian_product(value_fn, params, args, tangent))[0]
      return mean + weight.astype(mean.dtype) * found, None

    mean = jnp.zeros_like(vector)
    for args, rows in calls:
      mean, _ = jax.lax.scan(add, mean, (args, rows / total))
    return mean

  tridiagonalize: Any = decomp.tridiag_sym(steps, custom_vjp=False)
  found = tridiagonalize(product, ravel_pytree(start)[0])
  return found.J_small, jnp.linalg.norm(found.residual)


@jax.jit
def _signs(key: jax.Array, draw: Any, params: Any) -> Any:
  """Draws a tree of -1 and 1."""
  key = jax.random.fold_in(key, draw)
  return optax.tree.random_like(key, params, jax.random.rademacher)
