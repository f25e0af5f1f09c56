"""Figures of the pages, as data for Plotly: JSON, without code.

`figures.js` makes traces and a layout of them. A colour is the name of a CSS
variable ('--hue-3'), so that a figure follows the page into dark mode.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from optax_sam.train.reports.curves import is_drawable
from optax_sam.train.reports.display import Style

# An axis is logarithmic if its values span more than this factor.
LOGARITHMIC = 8
_DIGITS = 5


@dataclasses.dataclass(frozen=True)
class Figure:
  """A figure with its texts.

  Attributes:
    name: Identifier within the page, and file name of downloads.
    title: Title.
    caption: Explanation.
    alternative: Text alternative, for screen readers and without JavaScript.
    content: What `figures.js` reads: `curves` or `points` with a choice of
      the x axis, or `traces` and `layout` of Plotly. None if there is no data.
  """

  name: str
  title: str
  caption: str
  alternative: str
  content: dict[str, Any] | None


@dataclasses.dataclass(frozen=True)
class Row:
  """One method's row of a figure with a row for each method.

  Attributes:
    method: Name of the method.
    center: Value at the marker.
    interval: Ends of the bar; None if there is none.
    seeds: Values of the seeds, small dots.
    text: Text at the right end.
    filled: Whether the marker is filled and the bar is thick.
  """

  method: str
  center: float
  interval: tuple[float, float] | None
  seeds: Sequence[float]
  text: str
  filled: bool = True


def rows(
  given: Sequence[Row],
  styles: Mapping[str, Style],
  label: str,
  *,
  reference: float | None = None,
  fit: Sequence[float] = (),
) -> dict[str, Any] | None:
  """Returns a figure with a row for each method.

  Args:
    given: The rows, from top to bottom.
    styles: Style by method.
    label: Title of the x axis.
    reference: Position of a vertical line.
    fit: The values that the axis must show; empty for all. A row that leaves
      the axis has an arrow.

  Returns:
    Traces and layout; None without rows.
  """
  if not given:
    return None
  values = [reference] if reference is not None else []
  values += fit or [
    value
    for row in given
    for value in (row.center, *(row.interval or ()), *row.seeds)
  ]
  low, high, logarithmic = _extent(values, reference)
  layout: dict[str, Any] = {
    'height': max(260, 96 + 34 * len(given)),
    'xaxis': axis(label, logarithmic=logarithmic) | {'range': [low, high]},
    'yaxis': {
      'tickvals': list(range(len(given))),
      'ticktext': [styles[row.method].text for row in given],
      'range': [len(given) - 0.45, -0.55],
      'showgrid': False,
      'zeroline': False,
      'ticks': '',
      'fixedrange': True,
    },
    'shapes': [],
    'annotations': [_note(row.text, index) for index, row in enumerate(given)],
  }
  if reference is not None:
    line = {'color': '--ink', 'width': 1.2}
    ends = {'x0': reference, 'x1': reference, 'y0': 0, 'y1': 1}
    layout['shapes'] = [
      {'type': 'line', 'yref': 'paper', 'layer': 'below', 'line': line} | ends
    ]
  # The limits of a logarithmic axis are exponents.
  edges = (10**low, 10**high) if logarithmic else (low, high)
  for index, row in enumerate(given):
    if not edges[0] <= row.center <= edges[1]:
      layout['annotations'].append(_arrow(row.center < edges[0], index))
  return {
    'traces': [
      trace
      for index, row in enumerate(given)
      for trace in _row_traces(row, styles[row.method], index)
    ],
    'layout': layout,
  }


def axis(title: str, *, logarithmic: bool = False) -> dict[str, Any]:
  """Returns an axis with its title, which says if it is logarithmic."""
  if not logarithmic:
    return {'title': {'text': title}}
  return {'title': {'text': f'{title}, log scale'}, 'type': 'log'}


def spans_decades(values: Sequence[float]) -> bool:
  """Whether values are easier to compare on a logarithmic axis."""
  return bool(values) and 0 < min(values) * LOGARITHMIC < max(values)


def plain(value: Any) -> Any:
  """Returns a value as JSON has it: rounded, NaN and infinity are null."""
  if isinstance(value, Mapping):
    return {str(key): plain(entry) for key, entry in value.items()}
  if isinstance(value, np.ndarray):
    return plain(value.tolist())
  if isinstance(value, list | tuple):
    return [plain(entry) for entry in value]
  if isinstance(value, float | np.floating):
    value = float(value)
    if not is_drawable(value):
      return None
    short = float(f'{value:.{_DIGITS}g}')
    return int(short) if short.is_integer() else short
  return value


def _extent(
  values: Sequence[float], reference: float | None
) -> tuple[float, float, bool]:
  """Returns the range of an axis, and whether it is logarithmic."""
  low, high = min(values), max(values)
  if reference is None and spans_decades(values):
    return math.log10(low) - 0.08, math.log10(high) + 0.08, True
  if reference is None or reference == 1:
    low = min(0.0, low)  # lengths from zero are ratios
  margin = 0.06 * (high - low) or 0.5
  return (low - margin if low else 0.0), high + margin, False


def _row_traces(row: Row, style: Style, index: int) -> list[dict[str, Any]]:
  shared = {'legendgroup': row.method, 'mode': 'markers', 'type': 'scatter'}
  marker = {
    'size': 11,
    'symbol': style.symbol if row.filled else f'{style.symbol}-open',
    'color': style.color,
    'line': {'width': 2, 'color': style.color},
  }
  main: dict[str, Any] = shared | {
    'x': [row.center],
    'y': [index],
    'marker': marker,
    'hovertemplate': f'{style.text}: {row.text}<extra></extra>',
  }
  if row.interval is not None:
    low, high = row.interval
    main['error_x'] = {
      'type': 'data',
      'symmetric': False,
      'array': [high - row.center],
      'arrayminus': [row.center - low],
      'color': style.color,
      'thickness': 3 if row.filled else 1.4,
      'width': 5,
    }
  dots = shared | {
    'x': list(row.seeds),
    'y': [index + 0.28] * len(row.seeds),
    'marker': {'size': 5, 'color': '--muted'},
    'hovertemplate': f'{style.text}, one seed: %{{x:.4~g}}<extra></extra>',
  }
  return [main, dots] if row.seeds else [main]


def _note(text: str, index: int) -> dict[str, Any]:
  place = {'xref': 'paper', 'x': 1, 'xanchor': 'left', 'xshift': 6, 'y': index}
  return place | {'text': text, 'showarrow': False}


def _arrow(left: bool, index: int) -> dict[str, Any]:
  """Returns an arrow that points out of the figure."""
  return {
    'xref': 'paper',
    'x': 0 if left else 1,
    'y': index,
    'ax': 24 if left else -24,
    'ay': 0,
    'text': '',
    'showarrow': True,
    'arrowhead': 2,
    'arrowcolor': '--muted',
  }
