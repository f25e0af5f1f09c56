"""The pictures of the evidence: frontier, heat map, observations."""

import pathlib
import statistics
from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib import figure
from scipy import optimize

from benchmarks.evidence import analysis, observations
from benchmarks.evidence.claims import SCORE
from benchmarks.evidence.problems import PROBLEMS
from benchmarks.evidence.runs import Runs
from benchmarks.evidence.variants import BASE, SAM, VARIANTS

_BASES = ('base_longer', 'base_twice')
# Distance between points of nearly equal cost.
_NEAR, _DODGE = 0.05, 0.012
# Where the axis of the costs begins.
_LEFT = 0.7
_PLAIN, _RED, _BLUE = '0.35', 'C3', 'C0'
# Of the heat map: the largest shade, and those with white numbers.
_LARGEST, _DARK = 4, 2.8
FRONTIER, PANELS, HEAT_MAP = 'evidence.png', 'problems.png', 'methods.png'
OBSERVATIONS = 'observations.png'


def draw(
  directory: pathlib.Path,
  every: analysis.AllRuns,
  *,
  with_observations: bool,
) -> None:
  """Draws the pictures, with or without that of the observations."""
  makers = {FRONTIER: frontier, PANELS: panels, HEAT_MAP: heat_map}
  if with_observations:
    makers[OBSERVATIONS] = observed
  for name, make in makers.items():
    drawing = make(directory, every)
    temporary = (directory / name).with_suffix('.partial')
    drawing.savefig(temporary, dpi=140, format='png')
    temporary.replace(directory / name)


def frontier(directory: pathlib.Path, every: analysis.AllRuns) -> figure.Figure:
  """Draws the mean gain of each variant against its cost."""
  del directory
  drawing = figure.Figure(figsize=(8.4, 3.4), layout='constrained')
  axes = drawing.subplots()
  found, points = analysis.frontier(every), {}
  _draw_base(axes, {name: (cost, x.mean) for name, (cost, x) in found.items()})
  for name, (cost, gain) in found.items():
    near = [x for x, _ in points.values() if abs(x - cost) < _NEAR]
    place = cost if name in _BASES else cost + _DODGE * len(near)
    points[name] = place, gain.mean
    low, high = gain.interval or (gain.mean, gain.mean)
    axes.errorbar(
      [place],
      [gain.mean],
      yerr=[[gain.mean - low], [high - gain.mean]],
      fmt='o',
      markersize=5,
      color=_color(name),
      capsize=2,
      linewidth=0.8,
    )
  axes.set_xlabel('gradients per step (base optimizer = 1)')
  axes.set_ylabel('mean gain, standard deviations')
  axes.spines[['top', 'right']].set_visible(False)
  _label(axes, {VARIANTS[name].title: x for name, x in points.items()}, 19)
  return drawing


def _color(name: str) -> str:
  return {SAM: _RED}.get(name, _PLAIN if name in _BASES else _BLUE)


def _draw_base(axes: Any, points: dict[str, tuple[float, float]]) -> None:
  """Draws the base optimizer, with its longer runs as a line."""
  line = [(1.0, 0.0), *(points[name] for name in _BASES if name in points)]
  axes.hlines(0, _LEFT, 2.1, color='0.8', linewidth=0.8, zorder=0)
  axes.plot(*zip(*line, strict=True), 'o-', color=_PLAIN, markersize=4)
  axes.annotate(
    'base',
    (1, 0),
    (-6, 4),
    textcoords='offset points',
    ha='right',
    fontsize=9,
    color=_PLAIN,
  )


def _label(
  axes: Any, points: dict[str, tuple[float, float]], lines: int
) -> None:
  """Writes the labels in a column at the right, each near its point.

  Args:
    axes: the axes, with all that they will contain.
    points: titles and coordinates.
    lines: number of lines of text in the height of the axes.
  """
  axes.set_xlim(_LEFT, 2.95)
  axes.set_xticks([1, 1.25, 1.5, 1.75, 2])
  low, high = axes.get_ylim()
  axes.set_ylim(low, high)
  gap = (high - low) / lines
  order = sorted(points, key=lambda title: points[title][1])
  least = gap * np.arange(len(order))
  heights = np.array([points[title][1] for title in order])
  # The nearest places with at least this gap between them.
  places = optimize.isotonic_regression(heights - least).x + least
  for title, place in zip(order, places, strict=True):
    axes.annotate(
      title,
      points[title],
      (2.14, place),
      fontsize=8.5,
      va='center',
      arrowprops={
        'arrowstyle': '-',
        'color': '0.8',
        'linewidth': 0.6,
        'relpos': (0, 0.5),
      },
    )


def panels(directory: pathlib.Path, every: analysis.AllRuns) -> figure.Figure:
  """Draws the gain against the cost, one panel for each problem.

  It names SAM, and each method that gains more than all cheaper ones.
  """
  del directory
  columns = 2
  rows = -(-len(every) // columns)
  drawing = figure.Figure(figsize=(9.6, 3.1 * rows), layout='constrained')
  grid = drawing.subplots(rows, columns, squeeze=False)
  for axes in grid.flat[len(every) :]:
    axes.set_visible(False)
  for axes, (problem, runs) in zip(grid.flat, every.items(), strict=False):
    points = {}
    for name, variant in VARIANTS.items():
      mean = analysis.difference(runs, analysis.gain(name)).mean
      if name != BASE and mean is not None and variant.in_short:
        points[name] = (analysis.cost({problem: runs}, name), mean)
    _draw_base(axes, points)
    best, named = 0.0, {}
    for name in sorted(points, key=points.__getitem__):
      cost, mean = points[name]
      axes.plot([cost], [mean], 'o', color=_color(name), markersize=4)
      if mean > best or name == SAM:  # better than all that cost less
        best = max(best, mean)
        named[VARIANTS[name].title] = cost, mean
    axes.set_title(PROBLEMS[problem].title, fontsize=9)
    axes.set_ylabel(PROBLEMS[problem].unit, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.margins(y=0.1)
    _label(axes, named, 15)
    axes.spines[['top', 'right']].set_visible(False)
  drawing.supxlabel('gradients per step (base optimizer = 1)', fontsize=9)
  return drawing


def heat_map(directory: pathlib.Path, every: analysis.AllRuns) -> figure.Figure:
  """Draws the gain of each variant on each problem; hatched if unclear."""
  del directory
  names = [
    name
    for name in VARIANTS
    if name != BASE and any(runs.has([name]) for runs in every.values())
  ]
  names.sort(
    key=lambda name: (
      -(analysis.mean_difference(every, analysis.gain(name)).mean or 0)
    )
  )
  drawing = figure.Figure(
    figsize=(9.6, 0.27 * len(names) + 1.6), layout='constrained'
  )
  axes = drawing.subplots()
  shades = np.full((len(names), len(every)), np.nan)
  for column, runs in enumerate(every.values()):
    found = {
      name: analysis.difference(runs, analysis.gain(name)) for name in names
    }
    unit = analysis.deviation(runs, SCORE)
    for row, name in enumerate(names):
      mean = found[name].mean
      if mean is None:
        continue
      shades[row, column] = mean / unit
      axes.text(
        column,
        row,
        f'{mean:+.1f}'.replace('-', '\N{MINUS SIGN}'),
        ha='center',
        va='center',
        fontsize=8,
        color='white' if abs(mean / unit) > _DARK else 'black',
      )
      if not found[name].significant:
        axes.add_patch(_hatched(row, column))
  axes.imshow(shades, cmap='RdBu', vmin=-_LARGEST, vmax=_LARGEST, aspect='auto')
  axes.set_xticks(range(len(every)), _titles(every), fontsize=8)
  axes.set_yticks(
    range(len(names)), [VARIANTS[name].title for name in names], fontsize=8
  )
  axes.xaxis.tick_top()
  axes.tick_params(length=0)
  axes.spines[:].set_visible(False)
  return drawing


def _titles(names: Iterable[str]) -> list[str]:
  """Returns the titles of problems, on narrow lines."""
  titles = [PROBLEMS[name].title.replace(', ', '\n') for name in names]
  return [title.replace('MNIST ', 'MNIST\n') for title in titles]


def _hatched(row: int, column: int) -> Any:
  from matplotlib import patches

  return patches.Rectangle(
    (column - 0.5, row - 0.5),
    1,
    1,
    fill=False,
    hatch='////',
    edgecolor='0.75',
    linewidth=0,
  )


def observed(directory: pathlib.Path, every: analysis.AllRuns) -> figure.Figure:
  """Draws the four observations from which the papers start."""
  drawing = figure.Figure(figsize=(9.6, 6.6), layout='constrained')
  grid = drawing.subplots(2, 2)
  observations.draw_differences(grid[0, 0], directory)
  observations.draw_norms(grid[0, 1], directory)
  _draw_scores(
    grid[1, 0],
    every,
    {
      'SAM': SAM,
      'average only': 'sam_along_average',
      'noise only': 'friendly_sam',
    },
    'Gain by the part of the gradient that perturbs',
  )
  _draw_sizes(grid[1, 1], every)
  for axes in grid.flat:
    axes.spines[['top', 'right']].set_visible(False)
    axes.tick_params(labelsize=8)
  return drawing


def _draw_scores(
  axes: Any, every: analysis.AllRuns, names: dict[str, str], title: str
) -> None:
  problems = [x for x, runs in every.items() if runs.has(names.values())]
  width = 0.8 / len(names)
  for place, (label, name) in enumerate(names.items()):
    gains = [_scaled_gain(every[problem], name) for problem in problems]
    at = np.arange(len(problems)) + (place - 1) * width
    axes.bar(at, gains, width, label=label)
  axes.set_xticks(range(len(problems)), _titles(problems), fontsize=6.5)
  axes.axhline(0, color='0.5', linewidth=0.8)
  axes.set_ylabel('gain, standard deviations', fontsize=8)
  axes.set_title(title, fontsize=9)
  observations.legend(axes)


def _scaled_gain(runs: Runs, name: str) -> float:
  mean = analysis.difference(runs, analysis.gain(name)).mean or 0.0
  return mean / analysis.deviation(runs)


# Fractions of the batch, and the variants with the largest losses and with
# random subsets of that size.
_SIZES = {
  1 / 8: ('k_sam_eighth', 'random_eighth'),
  1 / 3: ('k_sam', 'random_third'),
  1 / 2: ('k_sam_half', 'random_half'),
  1: (SAM, SAM),
}


def _draw_sizes(axes: Any, every: analysis.AllRuns) -> None:
  wanted = {name for pair in _SIZES.values() for name in pair}
  problems = [runs for runs in every.values() if runs.has(wanted)]
  for which, label in enumerate(('largest losses (K-SAM)', 'random subset')):
    gains = [
      statistics.fmean(_scaled_gain(runs, pair[which]) for runs in problems)
      for pair in _SIZES.values()
      if problems
    ]
    if gains:
      axes.plot(list(_SIZES), gains, 'o-', label=label)
  axes.axhline(0, color='0.5', linewidth=0.8)
  axes.set_xlabel('K, fraction of the batch', fontsize=8)
  axes.set_ylabel('mean gain, standard deviations', fontsize=8)
  axes.set_title('Accuracy against K', fontsize=9)
  observations.legend(axes)
