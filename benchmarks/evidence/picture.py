"""The picture of the evidence: accuracy gained against what it costs."""

import pathlib
import statistics
from collections.abc import Mapping

import numpy as np
from matplotlib import figure

from benchmarks.evidence import claims
from benchmarks.evidence.runs import Runs
from benchmarks.evidence.variants import BASE, VARIANTS
from optax_sam.train import paired

_SHOWN = (
  'base_twice',
  *[comparison.variant for comparison in claims.CLAIMS[7].comparisons],
)


def points(
  runs: Mapping[str, Runs],
) -> dict[str, tuple[float, paired.Difference]]:
  """Returns cost and gain of every variant that ran on all problems.

  The cost is in full gradients per step, or steps, relative to the base
  optimizer; the gain is that of test accuracy over it, averaged over the
  problems seed by seed. Both are means.
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
    share = statistics.fmean(
      run.outcome.second_gradients
      for problem in runs.values()
      for run in problem.find(name, tuning=False)
    )
    cost = variant.length * variant.gradients(share)
    nothing = dict.fromkeys(mean, 0.0)
    found[name] = (cost, paired.paired_difference(mean, nothing))
  return found


def draw(path: pathlib.Path, runs: Mapping[str, Runs]) -> None:
  """Draws the points with their 95 % intervals."""
  found = points(runs)
  drawing = figure.Figure(figsize=(7.2, 4.2), layout='constrained')
  axes = drawing.subplots()
  axes.axhline(0, color='0.6', linewidth=0.8)
  axes.plot([1], [0], 'o', color='0.3')
  axes.annotate('base optimizer', (1, 0), (6, 5), textcoords='offset points')
  colors = {'base_twice': '0.3', 'sam': 'C3'}
  for name, (cost, gain) in found.items():
    center = 100 * (gain.mean or 0.0)
    low, high = gain.interval or (gain.mean, gain.mean)
    color = colors.get(name, 'C0')
    axes.errorbar(
      [cost],
      [center],
      yerr=np.abs([[100 * low - center], [100 * high - center]]),
      fmt='o',
      color=color,
      capsize=2,
      linewidth=1,
    )
    axes.annotate(
      VARIANTS[name].title,
      (cost, center),
      (6, 4),
      textcoords='offset points',
      fontsize=9,
      color=color,
    )
  axes.set_xlabel('gradients per step (base optimizer = 1)')
  axes.set_ylabel('test accuracy gained, points')
  axes.set_xlim(0.9, 2.45)
  axes.spines[['top', 'right']].set_visible(False)
  temporary = path.with_suffix('.partial')
  drawing.savefig(temporary, dpi=160, format='png')
  temporary.replace(path)


def _gains(problem: Runs, name: str) -> dict[int, float]:
  base = problem.by_seed(BASE, 'test_accuracy')
  return {
    seed: accuracy - base[seed]
    for seed, accuracy in problem.by_seed(name, 'test_accuracy').items()
    if seed in base
  }
