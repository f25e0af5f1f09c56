"""Plots of the loss around a solution, and between two; see `sharpness`.

Curves of two solutions are comparable along directions drawn with one key.
"""

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
