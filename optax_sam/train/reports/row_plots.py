"""Plots with a row per method: differences, time per step, sharpness."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from optax_sam.train.reports import formats
from optax_sam.train.reports.results import Comparison, Summary, finite, mean
from optax_sam.train.reports.svg import (
  INK,
  MUTED,
  PANEL,
  Style,
  is_drawable,
  new_figure,
  scale,
  to_svg,
)

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure


def differences(
  rows: Sequence[Summary], styles: dict[str, Style]
) -> str | None:
  """Plots the differences to the base optimizer with their intervals.

  An open marker and a thin line mean that the interval contains zero or is
  missing. Small dots are seeds.

  Args:
    rows: The summary.
    styles: Style by method.

  Returns:
    The plot; None if there is no difference.
  """
  shown = [
    (row, row.difference, row.difference.mean)
    for row in rows
    if row.difference.mean is not None
  ]
  if not shown:
    return None
  figure, axes = _row_axes(
    [row.method for row, *_ in shown],
    [formats.points(center) for *_, center in shown],
  )
  # The row of a diverged run may leave the axis, or it would flatten all
  # others.
  fitted = [row.difference for row, *_ in shown if not row.diverged]
  fitted = fitted or [difference for _, difference, _ in shown]
  extent = [0.0]
  for difference in fitted:
    extent += [*difference.by_seed.values(), *(difference.interval or ())]
  low, high = 100 * min(extent), 100 * max(extent)
  margin = 0.06 * (high - low) or 0.5
  low, high = low - margin, high + margin
  axes.set_xlim(low, high)
  axes.axvline(0, color=INK, linewidth=1.2)
  for index, (row, difference, center) in enumerate(shown):
    style, significant = styles[row.method], difference.significant
    if difference.interval is not None:
      axes.plot(
        [100 * bound for bound in difference.interval],
        [index, index],
        color=style.color,
        linewidth=3.5 if significant else 1.4,
        solid_capstyle='butt',
        marker='|',
        markersize=9,
      )
    _seeds(axes, index, [100 * x for x in difference.by_seed.values()])
    _marker(axes, index, 100 * center, style, filled=significant)
    if not low <= 100 * center <= high:
      axes.annotate(
        '',
        (low if center < 0 else high, index),
        (14 if center < 0 else -14, 0),
        textcoords='offset points',
        arrowprops={'arrowstyle': '->', 'color': MUTED},
      )
  axes.set_xlabel('difference in test accuracy, percentage points')
  return to_svg(figure, 'differences')


def step_time(rows: Sequence[Summary], styles: dict[str, Style]) -> str | None:
  """Plots the time per step relative to the base optimizer.

  Args:
    rows: The summary.
    styles: Style by method.

  Returns:
    The plot; None if nothing was timed.
  """
  shown = [
    (row.method, row.relative_time, row.relative_time_quartiles)
    for row in rows
    if row.relative_time is not None and row.relative_time_quartiles
  ]
  if not shown:
    return None
  figure, axes = _row_axes(
    [method for method, *_ in shown],
    [formats.ratio(median) for _, median, _ in shown],
  )
  axes.axvline(1, color=INK, linewidth=1.2)
  for index, (method, median, quartiles) in enumerate(shown):
    color = styles[method].color
    axes.plot(
      quartiles,
      [index, index],
      color=color,
      linewidth=3.5,
      solid_capstyle='butt',
    )
    _marker(axes, index, median, styles[method])
  axes.set_xlim(left=0)
  axes.set_xlabel('time per step, base optimizer = 1')
  return to_svg(figure, 'step-time')


def sharpness(
  comparison: Comparison, styles: dict[str, Style], key: str, label: str
) -> str | None:
  """Plots a measure of sharpness at the end of the runs, a dot per seed.

  Args:
    comparison: The measured comparison.
    styles: Style by method.
    key: Name of the measure in `Run.sharpness`.
    label: Label of the axis.

  Returns:
    The plot; None if it was not measured.
  """
  values = {
    method: finite(
      run.sharpness.get(key)
      for run in comparison.runs_of(method)
      if comparison.is_complete(run)
    )
    for method in comparison.methods
  }
  values = {
    method: [value for value in kept if is_drawable(value)]
    for method, kept in values.items()
    if any(map(is_drawable, kept))
  }
  if not values:
    return None
  figure, axes = _row_axes(
    list(values), [formats.number(mean(kept)) for kept in values.values()]
  )
  for index, (method, kept) in enumerate(values.items()):
    _seeds(axes, index, kept)
    _marker(axes, index, float(np.mean(kept)), styles[method])
  flat = [value for kept in values.values() for value in kept]
  if not scale(axes, 'x', flat):
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
  axes.set_xlabel(label)
  return to_svg(figure, key.replace('_', '-'))


def _row_axes(
  names: Sequence[str], labels: Sequence[str]
) -> tuple['Figure', 'Axes']:
  figure, axes = new_figure(0.85 + 0.38 * len(names))
  ticks = range(len(names))
  axes.set_yticks(ticks, names)
  axes.set_ylim(len(names) - 0.45, -0.55)
  axes.tick_params(axis='y', length=0)
  axes.grid(visible=False, axis='y')
  axes.spines['left'].set_visible(False)
  right = axes.secondary_yaxis('right')
  right.set_yticks(ticks, labels)
  right.tick_params(axis='y', length=0)
  right.spines['right'].set_visible(False)
  return figure, axes


def _seeds(axes: 'Axes', row: int, values: Sequence[float]) -> None:
  # Below the line of the row, so that the marker of the mean is visible.
  axes.plot(
    values,
    np.full(len(values), row + 0.3),
    linestyle='none',
    marker='.',
    markersize=4.5,
    color=MUTED,
  )


def _marker(
  axes: 'Axes', row: int, value: float, style: Style, *, filled: bool = True
) -> None:
  axes.plot(
    [value],
    [row],
    marker=style.marker,
    markersize=8,
    color=style.color,
    markerfacecolor=style.color if filled else PANEL,
    markeredgewidth=1.5,
  )
