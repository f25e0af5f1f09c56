"""The loss around a solution: line, plane and Hessian spectrum, as rows.

Each function takes a scalar loss of the parameters and further arguments, which
is compiled once, the solution, and these arguments.
"""

from typing import Any

import jax
import numpy as np

from optax_sam import landscape, sharpness
from optax_sam.train.reports.results import Rows

_LINE_POINTS = 41  # odd, so that the solution is one of them
# Coarse, so that a solution of a small network takes a second or two.
_PLANE_POINTS = 15
_STEPS, _PROBES = 24, 2
_DENSITY_POINTS = 200
_filter_normalized = jax.jit(landscape.filter_normalized)


def line(
  value_fn: Any, params: Any, args: tuple[Any, ...], *, seed: int = 0
) -> Rows:
  """Returns `position` and `loss` along a random direction.

  Networks with equal shapes get the same Gaussian direction for the same seed,
  scaled filter by filter to their own weights. So their lines are comparable.
  """
  direction, points = _direction(params, seed), _LINE_POINTS
  found = landscape.line(value_fn, params, direction, points=points, args=args)
  return _rows(position=found.positions, loss=found.losses)


def plane(value_fn: Any, params: Any, args: tuple[Any, ...]) -> Rows:
  """Returns `x`, `y` and `loss` along the direction of `line` and another."""
  directions = _direction(params, 0), _direction(params, 1)
  positions, losses = landscape.plane(
    value_fn, params, directions, points=_PLANE_POINTS, args=args
  )
  x, y = np.meshgrid(positions, positions, indexing='ij')
  return _rows(x=x, y=y, loss=losses)


def spectrum(value_fn: Any, params: Any, args: tuple[Any, ...]) -> Rows:
  """Returns `eigenvalue` and `density` of the Hessian."""
  size = sum(leaf.size for leaf in jax.tree.leaves(params))
  density = sharpness.spectral_density(
    value_fn, params, steps=min(_STEPS, size), probes=_PROBES, args=args
  )
  if not np.isfinite(density.nodes).all():
    return []
  low, high = float(density.nodes.min()), float(density.nodes.max())
  width = max(high - low, 1e-3)
  values = np.linspace(low - 0.05 * width, high + 0.05 * width, _DENSITY_POINTS)
  # Wider Gaussians than usual, because the estimate has few nodes.
  heights = density.at(values, variance=(0.01 * width) ** 2)
  return _rows(eigenvalue=values, density=heights)


def _rows(**columns: Any) -> Rows:
  flat = [np.ravel(column).tolist() for column in columns.values()]
  return [
    dict(zip(columns, row, strict=True)) for row in zip(*flat, strict=True)
  ]


def _direction(params: Any, seed: int) -> Any:
  """Returns a Gaussian direction in units of the weights."""
  # By NumPy, because JAX's generators take seconds to compile on a CPU.
  generator = np.random.default_rng(seed)
  draw = lambda leaf: generator.standard_normal(leaf.shape).astype(leaf.dtype)
  return _filter_normalized(jax.tree.map(draw, params), params)
