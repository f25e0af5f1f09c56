"""The loss along a random line through solutions: data and text."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from optax_sam import landscape
from optax_sam.train.reports import formats
from optax_sam.train.reports.curves import is_drawable

POINTS = 41  # odd, so that the solution is one of them
# Jitted, so that not every operation on every shape compiles separately.
_direction = jax.jit(landscape.random_direction)


def measure(
  value_fn: Any, params: Any, args: tuple[Any, ...], *, seed: int
) -> landscape.Line:
  """Returns the loss along a random direction, in units of the weights.

  Networks with equal shapes get the same Gaussian direction for the same seed,
  scaled filter by filter to their own weights. So their lines are comparable.

  Args:
    value_fn: maps the parameters and `args` to a scalar loss.
    params: the solution, the middle of the line.
    args: further arguments of `value_fn`; each `value_fn` is compiled once.
    seed: seed of the direction.
  """
  direction = _direction(params, jax.random.key(seed))
  return landscape.line(value_fn, params, direction, points=POINTS, args=args)


def rows(line: landscape.Line) -> list[dict[str, float]]:
  """Returns the points as rows of `position` and `loss`."""
  return [
    {'position': float(position), 'loss': float(loss)}
    for position, loss in zip(*line, strict=True)
  ]


def from_rows(points: Sequence[Mapping[str, float]]) -> landscape.Line:
  """Returns the line from the result of `rows`."""
  return landscape.Line(
    np.array([point['position'] for point in points]),
    np.array([point['loss'] for point in points]),
  )


def in_words(lines: Mapping[str, landscape.Line]) -> str:
  """Lists the losses at five positions of each line, as text alternative."""
  if not lines:
    return ''
  positions = next(iter(lines.values())).positions
  places = np.linspace(0, len(positions) - 1, 5).round().astype(int)
  where = formats.join([formats.number(positions[place]) for place in places])
  losses = '; '.join(
    f'{name} {", ".join(_loss(line.losses[place]) for place in places)}'
    for name, line in lines.items()
  )
  return f'Loss at {where} along the direction: {losses}.'


def top(lines: Mapping[str, landscape.Line]) -> float:
  """Returns an upper limit of the axis at which curves are distinguishable.

  Curves rise steeply far from the solutions, so it depends on their inner
  halves.
  """
  inner = [
    loss
    for line in lines.values()
    for loss in line.losses[len(line.losses) // 4 : -(len(line.losses) // 4)]
    if is_drawable(loss)
  ]
  return 1.1 * float(max(inner, default=0.0)) or 1.0


def _loss(value: float) -> str:
  return formats.number(value) if is_drawable(value) else 'not finite'
