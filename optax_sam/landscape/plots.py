"""Plots of slices with matplotlib."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from optax_sam.landscape.slices import Line, Plane

_LEVELS = 20


def plot_lines(lines: Mapping[str, Line], axes: Any = None) -> Any:
  """Plots losses along lines, one curve each; a flat minimum is a wide curve.

  Args:
    lines: at least one line, by the names of the legend.
    axes: axes of matplotlib to draw on; None for new ones.

  Returns:
    The axes.

  >>> positions = np.array([-1.0, 0.0, 1.0])
  >>> axes = plot_lines({'SAM': Line(positions, positions**2)})
  >>> axes.get_ylabel()
  'loss'
  """
  if not lines:
    msg = "lines must have at least one line, got none: write {'SAM': line}"
    raise ValueError(msg)
  axes = _new_axes() if axes is None else axes
  for name, (positions, losses) in lines.items():
    axes.plot(positions, losses, label=name)
  axes.set(xlabel='distance along the direction', ylabel='loss')
  axes.legend(frameon=False)
  return axes


def plot_plane(plane: Plane, axes: Any = None) -> Any:
  """Plots the loss on a plane as contours at quantiles of its values.

  Args:
    plane: the losses on the plane.
    axes: axes of matplotlib to draw on; None for new ones.

  Returns:
    The axes.

  >>> positions = np.array([-1.0, 0.0, 1.0])
  >>> axes = plot_plane(Plane(positions, np.add.outer(positions, positions)))
  >>> axes.get_xlabel()
  'first direction'
  """
  axes = _new_axes() if axes is None else axes
  # Quantiles, as losses span orders of magnitude.
  finite = plane.losses[np.isfinite(plane.losses)]
  levels = np.unique(np.quantile(finite, np.linspace(0, 1, _LEVELS)))
  if len(levels) < 2:
    levels = np.array([levels[0] - 0.5, levels[0] + 0.5])
  at = plane.positions
  drawn = axes.contour(at, at, plane.losses.T, levels=levels)
  axes.figure.colorbar(drawn, ax=axes, label='loss')
  axes.set(xlabel='first direction', ylabel='second direction', aspect='equal')
  return axes


def _new_axes() -> Any:
  from matplotlib import pyplot as plt

  return plt.subplots(layout='constrained')[1]
