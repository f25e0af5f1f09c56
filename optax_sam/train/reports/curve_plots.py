"""Plots over steps, and of accuracy against time."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from optax_sam.train.reports import curves
from optax_sam.train.reports.results import Comparison, Summary, finite
from optax_sam.train.reports.svg import (
  Style,
  add_legend,
  new_figure,
  scale,
  to_svg,
)

if TYPE_CHECKING:
  from matplotlib.axes import Axes

MARKERS_PER_CURVE = 6


def training_loss(
  comparison: Comparison, styles: dict[str, Style]
) -> str | None:
  """Plots the training loss over steps; None if nothing was logged."""

  def finish(axes: 'Axes', shown: list[curves.Curve]) -> None:
    values = [value for curve in shown for value in finite(curve.low)]
    values += [value for curve in shown for value in finite(curve.high)]
    # A diverging run must not flatten all other curves.
    limit = 3 * max(abs(float(curve.high[0])) for curve in shown)
    values = [value for value in values if value <= limit]
    low, high = min(values), max(values)
    if scale(axes, 'y', values):
      axes.set_ylim(low / 1.2, high * 1.2)
    else:
      margin = 0.05 * (high - low) or 0.01
      axes.set_ylim(low - margin, high + margin)
    axes.set_ylabel('training loss')

  return _plot(
    'training-loss', comparison, styles, curves.training_loss, finish
  )


def test_accuracy(
  comparison: Comparison, styles: dict[str, Style]
) -> str | None:
  """Plots the test accuracy over steps; None if nothing was evaluated.

  The range of the axis ignores the first quarter of the steps.

  Args:
    comparison: The measured comparison.
    styles: Style by method.

  Returns:
    The plot.
  """

  def finish(axes: 'Axes', shown: list[curves.Curve]) -> None:
    # The curve of a diverged run may leave the axis.
    shown = [curve for curve in shown if not curve.diverged] or shown
    end = max(float(curve.steps[-1]) for curve in shown)
    low = min(
      value
      for curve in shown
      for step, value in zip(curve.steps, curve.low, strict=True)
      if step >= end / 4
    )
    top = max(max(curve.high) for curve in shown)
    margin = 0.05 * (top - low) or 0.005
    axes.set_ylim(low - margin, top + margin)
    _percent_axis(axes, 'test accuracy, %')

  return _plot(
    'test-accuracy', comparison, styles, curves.test_accuracy, finish
  )


def second_gradients(
  comparison: Comparison, styles: dict[str, Style]
) -> str | None:
  """Plots the fraction of steps with a perturbed gradient over steps."""

  def finish(axes: 'Axes', shown: list[curves.Curve]) -> None:
    top = max([1.0, *(float(max(curve.high)) for curve in shown)])
    axes.set_ylim(-0.04 * top, 1.04 * top)
    _percent_axis(axes, 'steps with a perturbed gradient, %')

  return _plot(
    'second-gradients',
    comparison,
    styles,
    curves.second_gradient_share,
    finish,
  )


def accuracy_against_time(
  rows: Sequence[Summary], styles: dict[str, Style]
) -> str | None:
  """Plots test accuracy against time per step.

  Methods with a diverged run are left out because they would flatten the
  others.

  Args:
    rows: The summary.
    styles: Style by method.

  Returns:
    The plot; None if fewer than two methods have both numbers.
  """
  shown = [
    (row, row.score, row.relative_time, row.relative_time_quartiles)
    for row in rows
    if not row.diverged
    and row.score is not None
    and row.relative_time is not None
    and row.relative_time_quartiles is not None
  ]
  if len(shown) < 2:
    return None
  used = {row.method: styles[row.method] for row, *_ in shown}
  figure, axes = new_figure(3.5)
  for row, accuracy, time, (low, high) in shown:
    style = styles[row.method]
    axes.errorbar(
      [time],
      [100 * accuracy],
      xerr=[[time - low], [high - time]],
      yerr=100 * (row.score_deviation or 0.0),
      color=style.color,
      marker=style.marker,
      markersize=8,
      linewidth=1,
    )
  axes.margins(0.1)
  axes.set_xlabel('time per step, base optimizer = 1')
  axes.set_ylabel('test accuracy, %')
  add_legend(figure, used)
  return to_svg(figure, 'accuracy-time')


def draw_curve(
  axes: 'Axes',
  x: Sequence[float] | np.ndarray,
  y: Sequence[float] | np.ndarray,
  style: Style,
  index: int,
  count: int,
) -> None:
  """Draws a curve with a few markers.

  Args:
    axes: The axes.
    x: Positions.
    y: Values.
    style: The style of the method.
    index: Index of the curve.
    count: Number of the curves.
  """
  # Staggered markers make overlapping curves visible.
  size = len(x)
  every = max(count, size // MARKERS_PER_CURVE)
  first = index * every // count % size
  axes.plot(
    x,
    y,
    color=style.color,
    linestyle=style.line,
    marker=style.marker,
    markersize=5.5,
    markevery=(first, every),
  )


def _plot(
  name: str,
  comparison: Comparison,
  styles: dict[str, Style],
  curve_of: Callable[[Comparison, str], curves.Curve | None],
  finish: Callable[['Axes', list[curves.Curve]], None],
) -> str | None:
  found = {
    method: curve
    for method in comparison.methods
    if (curve := curve_of(comparison, method)) is not None
  }
  if not found:
    return None
  figure, axes = new_figure(3.5)
  for index, (method, curve) in enumerate(found.items()):
    style = styles[method]
    axes.fill_between(
      curve.steps,
      curve.low,
      curve.high,
      color=style.color,
      alpha=0.16 if len(found) <= 4 else 0.07,
      linewidth=0,
    )
    draw_curve(axes, curve.steps, curve.mean, style, index, len(found))
  axes.set_xlabel('step')
  axes.set_xlim(0, max(float(curve.steps[-1]) for curve in found.values()))
  finish(axes, list(found.values()))
  add_legend(figure, {method: styles[method] for method in found})
  return to_svg(figure, name)


def _percent_axis(axes: 'Axes', label: str) -> None:
  axes.yaxis.set_major_formatter(lambda value, _: f'{100 * value:g}')
  axes.set_ylabel(label)
