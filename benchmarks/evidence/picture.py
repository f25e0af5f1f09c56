"""The plot of the evidence: gain in accuracy against cost."""

import math
import pathlib
import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

from matplotlib import figure

from benchmarks.evidence import claims
from benchmarks.evidence.runs import Runs
from benchmarks.evidence.variants import BASE, VARIANTS
from optax_sam.train.reports import paired

_PLAIN = '0.3'
_NEAR = 0.09
_DODGE = 0.022

_SHOWN = (
  'base_twice',
  *[comparison.variant for comparison in claims.CLAIMS[7].comparisons],
)


class _Place(NamedTuple):
  title: str
  cost: float
  gain: float
  ends: tuple[float, float]
  color: str


def points(
  runs: Mapping[str, Runs],
) -> dict[str, tuple[float, paired.Difference]]:
  """Returns cost and gain of every variant that ran on all problems.

  The cost is in full gradients per step, or steps, relative to the base
  optimizer. The gain is the paired difference in test accuracy, averaged over
  the problems. Both are means.
  """
  found = {}
  for name in dict.fromkeys(_SHOWN):
    variant = VARIANTS[name]
    gains = [_gains(problem, name) for problem in runs.values()]
    seeds = set.intersection(*map(set, gains))
    if not seeds:
      continue
    mean = {
      seed: statistics.fmean(gain[seed] for gain in gains)
      for seed in sorted(seeds)
    }
    fraction = statistics.fmean(
      run.outcome.second_gradients
      for problem in runs.values()
      for run in problem.find(name, tuning=False)
    )
    cost = variant.length * variant.gradients(fraction)
    nothing = dict.fromkeys(mean, 0.0)
    found[name] = (cost, paired.paired_difference(mean, nothing))
  return found


def draw(path: pathlib.Path, runs: Mapping[str, Runs]) -> None:
  """Draws the points with their 95 % intervals."""
  drawing = figure.Figure(figsize=(8, 4.4), layout='constrained')
  axes = drawing.subplots()
  axes.axhline(0, color='0.6', linewidth=0.8, zorder=0)
  axes.plot([1], [0], 'o', markersize=5, color=_PLAIN)
  axes.text(0.985, 0, 'base', ha='right', va='bottom', color=_PLAIN, size=9)
  places = []
  for name, (cost, gain) in points(runs).items():
    center = 100 * (gain.mean or 0.0)
    low, high = gain.interval or (gain.mean or 0.0, gain.mean or 0.0)
    ends = (center - 100 * low, 100 * high - center)
    color = {'base_twice': _PLAIN, 'sam': 'C3'}.get(name, 'C0')
    places.append(_Place(VARIANTS[name].title, cost, center, ends, color))
  bottom = min((p.gain - p.ends[0] for p in places), default=0.0)
  top = max((p.gain + p.ends[1] for p in places), default=0.0)
  for near in _side_by_side(places):
    _draw_near(axes, near, gap=0.055 * (top - bottom))
  axes.set_xlabel('gradients per step (base optimizer = 1)')
  axes.set_ylabel('test accuracy gained, points')
  axes.set_xlim(0.9, 2.55)
  axes.spines[['top', 'right']].set_visible(False)
  temporary = path.with_suffix('.partial')
  drawing.savefig(temporary, dpi=160, format='png')
  temporary.replace(path)


def _side_by_side(places: list[_Place]) -> list[list[_Place]]:
  """Returns the points in groups of nearly equal cost."""
  groups: list[list[_Place]] = []
  for place in sorted(places, key=lambda p: p.cost):
    if groups and place.cost - groups[-1][-1].cost < _NEAR:
      groups[-1].append(place)
    else:
      groups.append([place])
  return groups


def _draw_near(axes: Any, near: list[_Place], gap: float) -> None:
  """Draws points of nearly equal cost with stacked labels."""
  right = max(place.cost for place in near) + _DODGE * (len(near) - 1) + 0.03
  height = -math.inf
  for rank, place in enumerate(sorted(near, key=lambda p: p.gain)):
    x = place.cost + _DODGE * rank
    axes.errorbar(
      [x],
      [place.gain],
      yerr=[[place.ends[0]], [place.ends[1]]],
      fmt='o',
      markersize=5,
      color=place.color,
      capsize=2,
      linewidth=1,
    )
    height = max(place.gain, height + gap)
    axes.annotate(
      place.title,
      (x, place.gain),
      (right, height),
      fontsize=9,
      color=place.color,
      va='center',
      arrowprops={
        'arrowstyle': '-',
        'color': '0.8',
        'linewidth': 0.6,
        'relpos': (0, 0.5),
      },
      bbox={
        'facecolor': 'white',
        'edgecolor': 'none',
        'alpha': 0.7,
        'pad': 0.5,
      },
    )


def _gains(problem: Runs, name: str) -> dict[int, float]:
  base = problem.by_seed(BASE, 'test_accuracy')
  return {
    seed: accuracy - base[seed]
    for seed, accuracy in problem.by_seed(name, 'test_accuracy').items()
    if seed in base
  }
