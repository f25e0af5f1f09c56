"""Losses along lines and planes through the space of parameters."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_sam import validation
from optax_sam.sharpness.mean_loss import MeanLoss


class Line(NamedTuple):
  """The loss along a line.

  Attributes:
    positions: in units of the direction, shape (points,).
    losses: the loss at each position, shape (points,).
  """

  positions: np.ndarray
  losses: np.ndarray


class Plane(NamedTuple):
  """The loss on a plane.

  Attributes:
    positions: along each of the directions, in their units, shape (points,).
    losses: shape (points, points), the first axis along the first direction.
  """

  positions: np.ndarray
  losses: np.ndarray


def filter_normalized(direction: Any, params: optax.Params) -> optax.Updates:
  r"""Scales each filter of a direction to the length of that of the weights.

  A filter :math:`f` has the weights of one output: one index of the last axis
  of a kernel in Flax (in the authors' PyTorch code, of the first axis). Leaves
  of at most one axis, such as biases and scales, are set to 0.

  .. math::
    d_f \leftarrow d_f\, \|w_f\| / (\|d_f\| + 10^{-10})

  Args:
    direction: a pytree of arrays like the parameters.
    params: the weights.

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

  def normalize(direction: jax.Array, weights: jax.Array) -> jax.Array:
    if jnp.ndim(weights) <= 1:
      return jnp.zeros_like(direction)
    axes = tuple(range(jnp.ndim(weights) - 1))
    length = lambda x: jnp.sqrt(jnp.sum(x**2, axis=axes, keepdims=True))
    return direction * (length(weights) / (length(direction) + 1e-10))

  return jax.tree.map(normalize, direction, params)


def random_direction(params: optax.Params, key: jax.Array) -> optax.Updates:
  """Returns a Gaussian direction in units of the weights, filter by filter.

  One key gives the same Gaussian at all solutions, so slices are comparable.

  Args:
    params: the weights, a pytree of floating-point arrays.
    key: a typed PRNG key.

  Returns:
    A direction like the parameters; see `filter_normalized`.

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
  r"""Returns the loss along a line through the parameters.

  It is :math:`L(w + a d)` at `points` values of a from `-radius` to `radius`.

  Args:
    value_fn: from the parameters, `args` and a batch to a scalar loss.
    params: the middle of the line, a pytree of floating-point arrays.
    direction: d, like the parameters; see `random_direction`.
    radius: half of the length, in units of the direction, above 0.
    points: number of positions, at least 2; an odd number includes the middle.
    args: arrays that differ from call to call; see `sharpness.sam_sharpness`.
    batches: data to average over; see `sharpness.sam_sharpness`.

  Returns:
    Positions and losses (`Line`).

  >>> found = line(lambda w: w[0] ** 2, jnp.ones(1), jnp.ones(1), points=3)
  >>> found.losses.tolist()
  [0.0, 1.0, 4.0]
  """
  positions = _positions(radius, points)
  return _slice(MeanLoss(value_fn, args, batches), params, direction, positions)


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
  r"""Returns the loss on a plane through the parameters.

  It is :math:`L(w + a d + b e)` on a grid of a, b from `-radius` to `radius`.

  Args:
    value_fn: as in `line`.
    params: the middle of the plane, a pytree of floating-point arrays.
    directions: d and e, both like the parameters.
    radius: half of the length of a side, in units of the directions, above 0.
    points: number of positions along each side, at least 2.
    args: as in `line`.
    batches: as in `line`.

  Returns:
    Positions and losses (`Plane`).

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
  first, second = directions
  rows = [
    _slice(loss, _move(params, a, first), second, positions).losses
    for a in positions
  ]
  return Plane(positions, np.stack(rows))


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
  r"""Returns the loss along the straight path from one solution to another.

  It is :math:`L((1 - a) w_0 + a w_1)` at `points` values of a from `-beyond` to
  `1 + beyond`, where :math:`w_0` is `start` and :math:`w_1` is `end`. Running
  statistics of batch norm belong to one solution only: include them in the
  parameters, or recompute them at every point.

  Args:
    value_fn: as in `line`.
    start: one solution, a pytree of floating-point arrays.
    end: the other one.
    beyond: length of the path beyond each solution, at least 0.
    points: number of positions, at least 2.
    args: as in `line`.
    batches: as in `line`.

  Returns:
    Positions, 0 at the start and 1 at the end, and losses (`Line`).

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
  there = jax.tree.map(jnp.subtract, end, start)
  return _slice(MeanLoss(value_fn, args, batches), start, there, positions)


def _positions(radius: float, points: int) -> np.ndarray:
  validation.check_number('radius', radius, above=0)
  validation.check_static_integer('points', points, at_least=2)
  return np.linspace(-radius, radius, points)


def _slice(
  loss: MeanLoss, params: Any, direction: Any, positions: np.ndarray
) -> Line:
  """Measures the loss at each position along a direction."""
  places = (_move(params, a, direction) for a in positions)
  losses = [float(loss.value(place)) for place in places]
  return Line(positions, np.array(losses))


@jax.jit
def _move(params: Any, a: Any, direction: Any) -> Any:
  return jax.tree.map(
    lambda w, d: w + jnp.asarray(a, w.dtype) * d, params, direction
  )
