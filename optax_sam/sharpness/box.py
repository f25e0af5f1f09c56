"""Keskar's epsilon-sharpness: the largest rise of the loss within a box."""

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

_LARGE = 10**7  # parameters, above which SciPy's float64 copies are too many
_SIGN_STEP = 0.2  # of a step of sign ascent, in units of the box


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
  """Returns Keskar sharpness: the largest rise in a box, in percent.

  With `L` the loss, a lower bound of::

    100 * max over abs(d_i) <= epsilon * (abs(w_i) + 1)
          of (L(w + d) - L(w)) / (1 + L(w))

  Args:
    value_fn: from the parameters, `args` and a batch to a scalar loss above -1.
    params: where to measure, a pytree of floating-point arrays.
    epsilon: size of the box relative to the parameters, at least 0. The
      paper's values 1e-3 and 5e-4 are unverified.
    iterations: of the search, at least 1.
    optimizer: 'l-bfgs-b' of SciPy, with some 25 vectors of the parameters' size
      in float64 on the host; 'sign', this library's projected ascent along the
      sign of the gradient by a fifth of the box a step, with two vectors; or
      'auto', the former below 1e7 parameters.
    args: arrays that differ from call to call; see `sam_sharpness`.
    batches: data to average over; see `sam_sharpness`.

  Returns:
    The relative rise in percent, at least 0, which is that of `d = 0`; NaN
    where the loss is.

  References:
    Keskar, Mudigere, Nocedal, Smelyanskiy, Tang, `On Large-Batch Training for
    Deep Learning: Generalization Gap and Sharp Minima
    <https://arxiv.org/abs/1609.04836>`_, ICLR 2017.

  >>> value = lambda x: jnp.sum(x**2)
  >>> sharpness = epsilon_sharpness(value, jnp.array([1.0]), 0.5)
  >>> round(sharpness, 3)  # from 1 to 4, over 1 + 1
  150.0
  """
  validation.check_number('epsilon', epsilon, at_least=0)
  validation.check_static_integer('iterations', iterations)
  choices = ('auto', 'l-bfgs-b', 'sign')
  validation.check_choice('optimizer', optimizer, choices)
  loss = MeanLoss(value_fn, args, batches)
  if optimizer == 'auto':
    optimizer = 'l-bfgs-b' if tree_math.size(params) < _LARGE else 'sign'
  search = _by_bfgs if optimizer == 'l-bfgs-b' else _by_sign
  start = float(loss.value(params))
  highest = search(loss, params, epsilon, iterations)
  if not np.isfinite(start):
    return float('nan')
  return 100 * max(0.0, highest - start) / (1 + start)


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
    optimize.minimize(
      negative,
      center,
      jac=True,
      method='L-BFGS-B',
      bounds=np.stack([center - box, center + box], axis=1),
      options={'maxiter': iterations},
    )
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
