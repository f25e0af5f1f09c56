"""Losses along lines and planes through the space of parameters."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_sam import validation
from optax_sam.sharpness.mean_loss import MeanLoss

_FILTER_STABILIZER = 1e-10


class Line(NamedTuple):
  """The loss along a line.

  Attributes:
    positions: (points,) numbers, in units of the direction.
    losses: alike.
  """

  positions: np.ndarray
  losses: np.ndarray


class Plane(NamedTuple):
  """The loss on a plane.

  Attributes:
    positions: (points,) numbers along each of the directions, in their units.
    losses: (points, points), the first axis along the first direction.
  """

  positions: np.ndarray
  losses: np.ndarray


def filter_normalized(
  direction: optax.Updates, params: optax.Params
) -> optax.Updates:
  """Scales each filter of a direction to the length of that of the weights.

  With `f` a filter, which is all weights of one output: what belongs to one
  index of the last axis of a kernel in Flax::

    d_f = d_f * norm(w_f) / (norm(d_f) + 1e-10)

  Leaves of at most one axis, such as biases and scales, are set to 0. The
  published program is for PyTorch, where filters are on the first axis.

  Args:
    direction: a pytree of arrays.
    params: the weights, alike.

  Returns:
    The direction in units of the weights.

  References:
    Li, Xu, Taylor, Studer, Goldstein, `Visualizing the Loss Landscape of Neural
    Nets <https://arxiv.org/abs/1712.09913>`_, NeurIPS 2018.

  >>> kernel = jnp.array([[3.0, 0.0], [4.0, 2.0]])
  >>> found = filter_normalized(jnp.ones((2, 2)), kernel)
  >>> jnp.linalg.norm(found, axis=0).round(3).tolist()
  [5.0, 2.0]
  """
  return jax.tree.map(_normalize_leaf, direction, params)


def random_direction(params: optax.Params, key: jax.Array) -> optax.Updates:
  """Returns a Gaussian direction in units of the weights, filter by filter.

  Of two solutions and one key, the Gaussian is the same: their slices are
  comparable.

  Args:
    params: the weights, a pytree of floating-point arrays.
    key: a typed PRNG key.

  Returns:
    A direction like the parameters; see `filter_normalized`.

  References:
    Li, Xu, Taylor, Studer, Goldstein, `Visualizing the Loss Landscape of Neural
    Nets <https://arxiv.org/abs/1712.09913>`_, NeurIPS 2018.

  >>> direction = random_direction(jnp.ones((4, 2)), jax.random.key(0))
  >>> jnp.linalg.norm(direction, axis=0).round(3).tolist()
  [2.0, 2.0]
  """
  return filter_normalized(optax.tree.random_like(key, params), params)


def line(
  value_fn: Callable[..., jax.Array],
  params: optax.Params,
  direction: optax.Updates,
  *,
  radius: float = 1.0,
  points: int = 51,
  args: tuple[Any, ...] = (),
  batches: Iterable[Any] | None = None,
) -> Line:
  """Returns the loss along a line through the parameters.

  With `L` the loss, at `points` values of `a` from `-radius` to `radius`::

    L(w + a * d)

  Args:
    value_fn: from the parameters, `args` and a batch to a scalar loss, in
      evaluation mode: running statistics stay those of the solution.
    params: the middle of the line, a pytree of floating-point arrays.
    direction: d, a pytree alike, such as `random_direction` returns.
    radius: half of the length, in units of the direction, above 0.
    points: number of them, a Python int of at least 2; the middle is one if it
      is odd.
    args: arrays that differ from call to call, such as running statistics or
      a batch.
    batches: over which the loss is averaged; see `optax_sam.sharpness`.

  Returns:
    Positions and losses (`Line`).

  Raises:
    ValueError: if a Python value is out of range, or there is no batch.

  References:
    Li, Xu, Taylor, Studer, Goldstein, `Visualizing the Loss Landscape of Neural
    Nets <https://arxiv.org/abs/1712.09913>`_, NeurIPS 2018.

  >>> found = line(lambda w: w[0] ** 2, jnp.ones(1), jnp.ones(1), points=3)
  >>> found.losses.tolist()
  [0.0, 1.0, 4.0]
  """
  positions = _positions(radius, points)
  loss = MeanLoss(value_fn, args, batches)
  places = (_moved(params, (direction,), (a,)) for a in positions)
  return Line(positions, _losses(loss, places))


def plane(
  value_fn: Callable[..., jax.Array],
  params: optax.Params,
  directions: tuple[optax.Updates, optax.Updates],
  *,
  radius: float = 1.0,
  points: int = 51,
  args: tuple[Any, ...] = (),
  batches: Iterable[Any] | None = None,
) -> Plane:
  """Returns the loss on a plane through the parameters.

  With `L` the loss, on a grid of `a` and `b` from `-radius` to `radius`::

    L(w + a * d + b * e)

  Args:
    value_fn: from the parameters, `args` and a batch to a scalar loss, in
      evaluation mode.
    params: the middle of the plane, a pytree of floating-point arrays.
    directions: d and e, pytrees alike.
    radius: half of the length of a side, in units of the directions, above 0.
    points: number of them along each side, a Python int of at least 2.
    args: arrays that differ from call to call; see `line`.
    batches: over which the loss is averaged; see `line`.

  Returns:
    Positions and losses (`Plane`).

  Raises:
    ValueError: if a Python value is out of range, or there is no batch.

  References:
    Li, Xu, Taylor, Studer, Goldstein, `Visualizing the Loss Landscape of Neural
    Nets <https://arxiv.org/abs/1712.09913>`_, NeurIPS 2018.

  >>> ways = (jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]))
  >>> found = plane(lambda w: w[0] + 10 * w[1], jnp.zeros(2), ways, points=2)
  >>> found.losses.tolist()
  [[-11.0, 9.0], [-9.0, 11.0]]
  """
  if len(directions) != 2:
    msg = f'directions must be two, got {len(directions)}: write (d, e)'
    raise ValueError(msg)
  positions = _positions(radius, points)
  loss = MeanLoss(value_fn, args, batches)
  places = (
    _moved(params, directions, (a, b)) for a in positions for b in positions
  )
  return Plane(positions, _losses(loss, places).reshape(points, points))


def path(
  value_fn: Callable[..., jax.Array],
  start: optax.Params,
  end: optax.Params,
  *,
  beyond: float = 0.0,
  points: int = 51,
  args: tuple[Any, ...] = (),
  batches: Iterable[Any] | None = None,
) -> Line:
  """Returns the loss along the straight path from one solution to another.

  With `L` the loss, at `points` values of `a` from `-beyond` to `1 + beyond`::

    L((1 - a) * start + a * end)

  Running statistics of batch norm belong to one solution only: hand those over
  as parameters, too, or estimate them anew at every point.

  Args:
    value_fn: from the parameters, `args` and a batch to a scalar loss, in
      evaluation mode.
    start: one solution, a pytree of floating-point arrays.
    end: the other, a pytree alike.
    beyond: how far the path goes on at each end, at least 0.
    points: number of them, a Python int of at least 2.
    args: arrays that differ from call to call; see `line`.
    batches: over which the loss is averaged; see `line`.

  Returns:
    Positions, 0 at the start and 1 at the end, and losses (`Line`).

  Raises:
    ValueError: if a Python value is out of range, or there is no batch.

  References:
    Goodfellow, Vinyals, Saxe, `Qualitatively Characterizing Neural Network
    Optimization Problems <https://arxiv.org/abs/1412.6544>`_, ICLR 2015.

  >>> found = path(lambda w: w[0], jnp.zeros(1), jnp.ones(1), points=3)
  >>> found.losses.tolist()
  [0.0, 0.5, 1.0]
  """
  validation.check_number('beyond', beyond, at_least=0)
  validation.check_static_integer('points', points, at_least=2)
  positions = np.linspace(-beyond, 1 + beyond, points)
  loss = MeanLoss(value_fn, args, batches)
  there = jax.tree.map(jnp.subtract, end, start)
  places = (_moved(start, (there,), (a,)) for a in positions)
  return Line(positions, _losses(loss, places))


def _normalize_leaf(direction: jax.Array, weights: jax.Array) -> jax.Array:
  if jnp.ndim(weights) <= 1:
    return jnp.zeros_like(direction)
  axes = tuple(range(jnp.ndim(weights) - 1))

  def length(leaf: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(leaf), axis=axes, keepdims=True))

  return direction * (
    length(weights) / (length(direction) + _FILTER_STABILIZER)
  )


def _positions(radius: float, points: int) -> np.ndarray:
  validation.check_number('radius', radius, above=0)
  validation.check_static_integer('points', points, at_least=2)
  return np.linspace(-radius, radius, points)


def _losses(loss: MeanLoss, places: Iterator[Any]) -> np.ndarray:
  return np.array([float(loss.value(place)) for place in places])


@jax.jit
def _moved(params: Any, directions: Any, lengths: Any) -> Any:
  for direction, length in zip(directions, lengths, strict=True):
    params = jax.tree.map(
      lambda w, d, a=length: w + jnp.asarray(a, w.dtype) * d, params, direction
    )
  return params
