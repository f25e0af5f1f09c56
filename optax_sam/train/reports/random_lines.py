"""The loss along a random line through solutions."""

from typing import Any

import jax

from optax_sam import landscape

POINTS = 41  # odd, so that the solution is one of them
# Jitted, so that not every operation on every shape compiles separately.
_direction = jax.jit(landscape.random_direction)


def measure(
  value_fn: Any, params: Any, args: tuple[Any, ...], *, seed: int
) -> list[dict[str, float]]:
  """Returns the loss along a random direction, in units of the weights.

  Networks with equal shapes get the same Gaussian direction for the same seed,
  scaled filter by filter to their own weights. So their lines are comparable.
  Each `value_fn`, of the parameters and `args`, is compiled once.
  """
  direction = _direction(params, jax.random.key(seed))
  found = landscape.line(value_fn, params, direction, points=POINTS, args=args)
  return rows(found)


def rows(line: landscape.Line) -> list[dict[str, float]]:
  """Returns the points as rows of `position` and `loss`."""
  return [
    {'position': float(position), 'loss': float(loss)}
    for position, loss in zip(*line, strict=True)
  ]
