"""The loss around a solution: line, plane and Hessian spectrum, as rows.

Each function takes a scalar loss of the parameters and further arguments, which
is compiled once, the solution, and these arguments.
"""

from typing import Any

import jax
import numpy as np

from optax_sam import landscape, sharpness
from optax_sam.train.reports import random_lines

# Coarse, so that a solution of a small network takes a second or two.
_PLANE_POINTS = 15
_STEPS, _PROBES = 24, 2
_DENSITY_POINTS = 200
_filter_normalized = jax.jit(landscape.filter_normalized)

Rows = list[dict[str, float]]


def line(value_fn: Any, params: Any, args: tuple[Any, ...]) -> Rows:
  """Returns `position` and `loss` along a random direction."""
  found = landscape.line(
    value_fn,
    params,
    _direction(params, seed=0),
    points=random_lines.POINTS,
    args=args,
  )
  return random_lines.rows(found)


def plane(value_fn: Any, params: Any, args: tuple[Any, ...]) -> Rows:
  """Returns `x`, `y` and `loss` along the direction of `line` and another."""
  directions = _direction(params, seed=0), _direction(params, seed=1)
  positions, losses = landscape.plane(
    value_fn, params, directions, points=_PLANE_POINTS, args=args
  )
  return [
    {'x': float(x), 'y': float(y), 'loss': float(losses[row, column])}
    for row, x in enumerate(positions)
    for column, y in enumerate(positions)
  ]


def spectrum(value_fn: Any, params: Any, args: tuple[Any, ...]) -> Rows:
  """Returns `eigenvalue` and `density` of the Hessian.

  The Gaussians are wider than usual, because the estimate has few nodes.
  """
  size = sum(leaf.size for leaf in jax.tree.leaves(params))
  density = sharpness.spectral_density(
    value_fn, params, steps=min(_STEPS, size), probes=_PROBES, args=args
  )
  if not np.isfinite(density.nodes).all():
    return []
  low, high = float(density.nodes.min()), float(density.nodes.max())
  width = max(high - low, 1e-3)
  values = np.linspace(low - 0.05 * width, high + 0.05 * width, _DENSITY_POINTS)
  heights = density.at(values, variance=(0.01 * width) ** 2)
  return [
    {'eigenvalue': float(value), 'density': float(height)}
    for value, height in zip(values, heights, strict=True)
  ]


def _direction(params: Any, *, seed: int) -> Any:
  """Returns a Gaussian direction in units of the weights.

  NumPy draws it, because JAX's generators take seconds to compile on a CPU.
  """
  generator = np.random.default_rng(seed)
  draw = lambda leaf: generator.standard_normal(leaf.shape).astype(leaf.dtype)
  return _filter_normalized(jax.tree.map(draw, params), params)
