"""Figures of solutions: sharpness, landscape, spectrum of the Hessian."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from optax_sam.landscape import Line
from optax_sam.train.reports import formats, random_lines
from optax_sam.train.reports.curves import is_drawable
from optax_sam.train.reports.display import Style
from optax_sam.train.reports.figures import Figure, Row, axis, rows
from optax_sam.train.reports.results import Comparison
from optax_sam.train.reports.summary import finite, mean

_DISTANCE = 'distance from the solution, in units of its weights'


def sharpness(
  comparison: Comparison,
  styles: Mapping[str, Style],
  key: str,
  title: str,
  caption: str,
) -> Figure:
  """Returns a measure of sharpness at the end, a row for each method.

  Args:
    comparison: The measured comparison.
    styles: Style by method.
    key: Name of the measure in `Run.sharpness`.
    title: Title of the figure.
    caption: Explanation of the measure.

  Returns:
    The figure; without content if it was not measured.
  """
  given = []
  for method in styles:
    values = [
      value
      for value in finite(
        run.sharpness.get(key)
        for run in comparison.runs_of(method)
        if comparison.is_complete(run)
      )
      if is_drawable(value)
    ]
    center = mean(values)
    if center is not None:
      given.append(Row(method, center, None, values, formats.number(center)))
  words = '; '.join(f'{styles[row.method].label} {row.text}' for row in given)
  return Figure(
    key.replace('_', '-'),
    title,
    f'{caption} Mean; small dots are seeds. Lower is flatter.',
    f'{title}: {words}.',
    rows(given, styles, title),
  )


def lines(
  found: Mapping[str, Line],
  styles: Mapping[str, Style],
  *,
  examples: str,
  caveat: str,
) -> Figure:
  """Returns the loss along one random direction through several solutions.

  Args:
    found: The lines by name.
    styles: The styles by name.
    examples: The examples of the loss, for the caption.
    caveat: The limits of the figure, for the caption.

  Returns:
    The figure; without content if no line has two finite points.
  """
  shown = {
    name: line
    for name, line in found.items()
    if sum(map(is_drawable, line.losses)) > 1
  }
  content = None
  if shown:
    top = random_lines.top(shown)
    low = min(
      float(loss)
      for line in shown.values()
      for loss in line.losses
      if is_drawable(loss)
    )
    low -= 0.06 * (top - low)
    reach = max(
      abs(float(position))
      for line in shown.values()
      for position, loss in zip(*line, strict=True)
      if loss <= top
    )
    content = {
      'traces': [
        {
          'type': 'scatter',
          'mode': 'lines',
          'legendgroup': name,
          'x': list(line.positions),
          'y': list(line.losses),
          'line': {
            'color': styles[name].color,
            'dash': styles[name].dash,
            'width': 2,
          },
          'hovertemplate': f'{styles[name].text}: %{{y:.4~g}}<extra></extra>',
        }
        for name, line in shown.items()
      ],
      'layout': {
        'xaxis': axis(_DISTANCE) | {'range': [-reach, reach]},
        'yaxis': axis('training loss') | {'range': [low, top]},
      },
    }
  return Figure(
    'landscape',
    'Loss along one random direction',
    f'Training loss on {examples}, in evaluation mode: the solution is in the'
    ' middle. The direction is scaled filter by filter to the weights. A wide'
    f' curve is flat along it. The axis is cut at the top. {caveat}',
    random_lines.in_words(
      {styles[name].label: line for name, line in found.items()}
    ),
    content,
  )


def planes(comparison: Comparison, styles: Mapping[str, Style]) -> list[Figure]:
  """Returns the loss in a plane through the solutions, as contours.

  Args:
    comparison: The measured comparison.
    styles: Style by method.

  Returns:
    A figure for each method with a plane, with common colours.
  """
  losses = finite(
    row['loss']
    for points in comparison.planes.values()
    for row in points
    if row['loss'] is not None and 0 < row['loss'] <= 1e30
  )
  if not losses:
    return []
  low, high = math.log10(min(losses)), math.log10(max(losses))
  return [
    _plane(styles[method], points, low, high)
    for method, points in comparison.planes.items()
    if method in styles and points
  ]


def _plane(
  style: Style, points: Sequence[Mapping[str, float]], low: float, high: float
) -> Figure:
  x = sorted({point['x'] for point in points})
  y = sorted({point['y'] for point in points})
  loss = {(point['x'], point['y']): point['loss'] for point in points}
  table = np.array(
    [[loss.get((a, b)) or math.nan for a in x] for b in y], dtype=float
  )
  table[~(table > 0) | (table > 1e30)] = math.nan
  center = table[len(y) // 2, len(x) // 2]
  contour = {
    'type': 'contour',
    'x': x,
    'y': y,
    'z': np.log10(table),
    'customdata': table,
    'zmin': low,
    'zmax': high,
    'autocontour': False,
    'contours': {
      'start': low,
      'end': high,
      'size': (high - low) / 14 or 0.1,
    },
    'line': {'width': 0.7, 'color': 'rgba(255,255,255,0.45)'},
    'colorscale': 'Viridis',
    'colorbar': {
      'title': {'text': 'loss', 'side': 'right'},
      'thickness': 12,
      'outlinewidth': 0,
      'tickvals': list(np.linspace(low, high, 5)),
      'ticktext': [f'{10**value:.2g}' for value in np.linspace(low, high, 5)],
    },
    'hovertemplate': 'loss %{customdata:.4~g}<extra></extra>',
  }
  solution = {
    'type': 'scatter',
    'mode': 'markers',
    'x': [0],
    'y': [0],
    'hoverinfo': 'skip',
    'marker': {'symbol': 'cross', 'size': 11, 'color': '#fff'},
  }
  name = style.label.lower().replace(' ', '-')
  return Figure(
    f'plane-{name}',
    f'Loss around the solution of {style.label}',
    'In a plane of two random directions, scaled filter by filter, for the'
    ' first seed. The cross is the solution. All planes have the same colours,'
    ' on a logarithmic scale.',
    f'Loss {formats.number(float(center))} at the solution,'
    f' {formats.number(float(np.nanmax(table)))} at most.',
    {
      'traces': [contour, solution],
      'layout': {
        'height': 380,
        'xaxis': axis('first direction')
        | {'showgrid': False, 'zeroline': False, 'constrain': 'domain'},
        'yaxis': axis('second direction')
        | {'showgrid': False, 'zeroline': False, 'constrain': 'domain'}
        | {'scaleanchor': 'x'},
      },
    },
  )


def spectra(comparison: Comparison, styles: Mapping[str, Style]) -> Figure:
  """Returns the density of the Hessian's eigenvalues, a curve by method.

  Args:
    comparison: The measured comparison.
    styles: Style by method.

  Returns:
    The figure; without content if it was not measured.
  """
  traces, words, tops = [], [], []
  for method, points in comparison.spectra.items():
    if method not in styles or not points:
      continue
    style = styles[method]
    densities = [point['density'] for point in points]
    tops.append(max(finite(densities), default=0.0))
    traces.append(
      {
        'type': 'scatter',
        'mode': 'lines',
        'legendgroup': method,
        'x': [point['eigenvalue'] for point in points],
        'y': [value or None for value in densities],
        'line': {'color': style.color, 'dash': style.dash, 'width': 2},
        'hovertemplate': f'{style.text}: density %{{y:.3~g}} at %{{x:.4~g}}'
        '<extra></extra>',
      }
    )
    largest = max(
      (p['eigenvalue'] for p in points if (p['density'] or 0) > tops[-1] / 1e4),
      default=math.nan,
    )
    words.append(f'{style.label} up to {formats.number(largest)}')
  content: dict[str, Any] | None = None
  if traces and max(tops) > 0:
    top = math.log10(max(tops))
    content = {
      'traces': traces,
      'layout': {
        'xaxis': axis('eigenvalue of the Hessian'),
        'yaxis': axis('density', logarithmic=True)
        | {'range': [top - 5, top + 0.3]},
      },
    }
  return Figure(
    'spectrum',
    'Spectrum of the Hessian',
    'Density of the eigenvalues at the solution, first seed. Mass far to the'
    ' right: sharp directions. Negative eigenvalues: a saddle.',
    f'Eigenvalues: {"; ".join(words)}.',
    content,
  )
