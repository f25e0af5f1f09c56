"""Plots of the loss around a solution, and between two."""

from optax_sam.landscape.plots import plot_lines, plot_plane
from optax_sam.landscape.slices import (
  Line,
  Plane,
  filter_normalized,
  line,
  path,
  plane,
  random_direction,
)

__all__ = [
  'Line',
  'Plane',
  'filter_normalized',
  'line',
  'path',
  'plane',
  'plot_lines',
  'plot_plane',
  'random_direction',
]
