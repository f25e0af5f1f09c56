"""Differences between variants over problems and seeds, and the verdicts.

Scores of different problems have different units. So a difference is divided by
the standard deviation between seeds on its problem, and averaged over problems.
"""

import dataclasses
import functools
import math
import pathlib
import statistics
from collections.abc import Iterable, Mapping

import numpy as np
from scipy import stats

from benchmarks.evidence import claims
from benchmarks.evidence.claims import Claim, Comparison, Expected
from benchmarks.evidence.problems import PARTS, PROBLEMS
from benchmarks.evidence.runs import Runs
from benchmarks.evidence.variants import BASE, VARIANTS
from optax_sam.train.reports import paired

_SIGNIFICANT = 1 - paired.CONFIDENCE
_FEWEST = 2  # values for a standard deviation or a correlation

AllRuns = Mapping[str, Runs]


@dataclasses.dataclass(frozen=True)
class Result:
  """A comparison on the problems.

  Attributes:
    comparison: what is compared.
    cells: difference on each problem, in its unit, with p-values adjusted for
      the number of cells of the claim.
    mean: mean over the problems, in standard deviations.
    says: 'yes', 'opposite', 'open', or nothing without a claim.
  """

  comparison: Comparison
  cells: dict[str, paired.Difference]
  mean: paired.Difference
  says: str


def load(
  directory: pathlib.Path,
  *,
  in_appendix: bool = False,
  recorded: pathlib.Path | None = None,
) -> dict[str, Runs]:
  """Returns the runs of all problems with runs of the base and of a method.

  Without or with only the problems of the appendix. Problems that lack a
  variant that another problem has are left out: they are still running, and a
  mean over some variants of them would compare unequal problems.

  Args:
    directory: directory of the runs.
    in_appendix: whether to load the problems of the appendix instead.
    recorded: directory of the runs that define the units of a mean.
  """
  found = {
    name: Runs(directory, name)
    for name, problem in PROBLEMS.items()
    if problem.in_appendix == in_appendix
  }
  others = [name for name in VARIANTS if name != BASE]
  found = {
    name: runs
    for name, runs in found.items()
    if runs.has([BASE]) and any(runs.has([x]) for x in others)
  }
  if recorded is not None:
    for name, runs in found.items():
      runs.units = Runs(recorded, name)
  ran = {x for x in VARIANTS if any(runs.has([x]) for runs in found.values())}
  return {
    name: runs
    for name, runs in found.items()
    if runs.has(ran.intersection(claims.variants_of(name)))
  }


@functools.cache
def deviation(runs: Runs, measure: str = claims.SCORE) -> float:
  """Returns the median, over variants, of the deviation between seeds."""
  found = []
  for name in VARIANTS:
    values = list(runs.units.by_seed(name, measure).values())
    if len(values) >= _FEWEST and np.all(np.isfinite(values)):
      found.append(statistics.stdev(values))
  return statistics.median(found) if found else math.nan


def difference(runs: Runs, comparison: Comparison) -> paired.Difference:
  """Returns the paired difference of two variants on a problem."""
  first, second = (
    runs.by_seed(name, comparison.measure)
    for name in (comparison.variant, comparison.against)
  )
  return paired.paired_difference(first, second)


def mean_difference(
  every: AllRuns, comparison: Comparison
) -> paired.Difference:
  """Returns the mean over the problems, in standard deviations.

  Of the problems on which both variants ran; paired over the seeds.
  """
  scaled = []
  for runs in every.values():
    found = difference(runs, comparison).by_seed
    if found:
      unit = deviation(runs, comparison.measure)
      scaled.append({seed: x / unit for seed, x in found.items()})
  if not scaled:
    return paired.Difference({}, reason='no problem has runs of both')
  seeds = set.intersection(*map(set, scaled))
  mean = {
    seed: statistics.fmean(each[seed] for each in scaled)
    for seed in sorted(seeds)
  }
  return paired.paired_difference(mean, dict.fromkeys(mean, 0.0))


def gain(name: str, against: str = BASE) -> Comparison:
  """Returns the comparison of the score of a variant, without a claim."""
  return Comparison(name, against, Expected.REPORTED)


def margin(every: AllRuns) -> float:
  """Returns the margin of equality of the mean, in standard deviations."""
  return statistics.fmean(
    claims.MARGIN / deviation(runs) for runs in every.values()
  )


def p_value(
  found: paired.Difference, expected: Expected, margin: float
) -> float | None:
  """Returns the p-value of the claimed relation's opposite or absence.

  For 'on par' it is that of two one-sided tests against the margin.
  """
  if found.p_value is None:
    return None
  if expected not in (Expected.ON_PAR, Expected.AT_LEAST_ON_PAR):
    return found.p_value
  values = list(found.by_seed.values())
  above = stats.ttest_1samp(values, -margin, alternative='greater').pvalue
  if expected is Expected.AT_LEAST_ON_PAR:
    return float(above)
  below = stats.ttest_1samp(values, margin, alternative='less').pvalue
  return float(max(above, below))


def says(
  found: paired.Difference, expected: Expected, adjusted: float | None
) -> str:
  """Returns the verdict on a mean: 'yes', 'opposite' or 'open'.

  Args:
    found: the mean, with its adjusted p-value of no difference.
    expected: the claimed relation.
    adjusted: adjusted p-value of `p_value`.
  """
  if expected is Expected.REPORTED or found.mean is None or adjusted is None:
    return '' if expected is Expected.REPORTED else 'open'
  is_shown = adjusted < _SIGNIFICANT
  if expected in (Expected.HIGHER, Expected.LOWER):
    is_right = (found.mean > 0) == (expected is Expected.HIGHER)
    return ('yes' if is_right else 'opposite') if is_shown else 'open'
  if is_shown:
    return 'yes'
  return 'opposite' if found.significant and found.mean < 0 else 'open'


def results(every: AllRuns, claim: Claim) -> list[Result]:
  """Returns the comparisons of a claim, with Holm's correction.

  On the problems on which all variants of the claim ran that run there.
  """
  names = {x for c in claim.comparisons for x in (c.variant, c.against)}
  every = {
    name: runs
    for name, runs in every.items()
    if name in (claim.problems or PROBLEMS)
    and runs.has(names.intersection(claims.variants_of(name)))
  }
  means, cells = [], {}
  for comparison in claim.comparisons:
    means.append(mean_difference(every, comparison))
    for name, runs in every.items():
      cells[comparison, name] = difference(runs, comparison)
  adjusted_cells = _adjusted(
    {place: found.p_value for place, found in cells.items()}
  )
  width = margin(every) if every else math.nan
  tested = {
    i: p_value(mean, comparison.expected, width)
    for i, (mean, comparison) in enumerate(
      zip(means, claim.comparisons, strict=True)
    )
    if comparison.expected is not Expected.REPORTED
  }
  adjusted, differs = (
    _adjusted(of) for of in (tested, {i: means[i].p_value for i in tested})
  )
  found = []
  for i, comparison in enumerate(claim.comparisons):
    mean = dataclasses.replace(means[i], adjusted_p_value=differs.get(i))
    found.append(
      Result(
        comparison,
        {
          name: dataclasses.replace(
            cells[comparison, name],
            adjusted_p_value=adjusted_cells.get((comparison, name)),
          )
          for name in every
          if cells[comparison, name].mean is not None
        },
        mean,
        says(mean, comparison.expected, adjusted.get(i)),
      )
    )
  return found


def verdict(found: Iterable[Result]) -> str:
  """Returns the verdict on a claim."""
  said = [result.says for result in found if result.says]
  if 'opposite' in said:
    return 'contradicted'
  return 'shown' if said and set(said) == {'yes'} else 'not shown'


def _adjusted(p_values: Mapping) -> dict:
  known = {place: p for place, p in p_values.items() if p is not None}
  return dict(zip(known, paired.holm(list(known.values())), strict=True))


def cost(every: AllRuns, name: str) -> float:
  """Returns the mean cost of a run, in gradients per step of the base."""
  length = VARIANTS[name].parts / PARTS
  found = [
    runs.mean(name, 'gradients') for runs in every.values() if runs.has([name])
  ]
  return length * statistics.fmean(found)


def frontier(every: AllRuns) -> dict[str, tuple[float, paired.Difference]]:
  """Returns cost and mean gain of the variants that ran on most problems."""
  found = {}
  for name in VARIANTS:
    ran = [x for x, runs in every.items() if runs.has([name])]
    could = [x for x in every if name in claims.variants_of(x)]
    if name != BASE and ran and ran == could and VARIANTS[name].in_short:
      found[name] = (cost(every, name), mean_difference(every, gain(name)))
  return found


def gradients_to_target(runs: Runs, name: str) -> float | None:
  """Returns the cost until the base's best validation score, base = 1.

  The median over the seeds; None if less than half of the runs reach it. The
  target of a seed is the best validation score of the base's run. 1 is the cost
  of the base until its own best.
  """
  base, curves = (
    {
      seed: [float(score) for score in curve.split()]
      for seed, curve in runs.by_seed(which, 'curve').items()
    }
    for which in (BASE, name)
  )
  gradients = runs.by_seed(name, 'gradients')
  found = []
  for seed, curve in curves.items():
    if seed not in base:
      continue
    target = max(base[seed])
    reached = next((i for i, x in enumerate(curve) if x >= target), None)
    own = base[seed].index(target) + 1
    found.append(
      math.inf if reached is None else (reached + 1) * gradients[seed] / own
    )
  middle = statistics.median_low(found) if found else math.inf
  return middle if math.isfinite(middle) else None


def rank_correlation(runs: Runs, measure: str) -> tuple[float, int]:
  """Returns Spearman's correlation of a measure and the score, over all runs.

  And the number of runs. Negative: flatter minima have better scores.
  """
  pairs = [
    (getattr(run.outcome, measure), run.outcome.test_score)
    for run in runs.all
    if not run.tuning
  ]
  pairs = [pair for pair in pairs if np.all(np.isfinite(pair))]
  if len(pairs) < _FEWEST:
    return math.nan, len(pairs)
  return float(stats.spearmanr(*zip(*pairs, strict=True)).statistic), len(pairs)


def at_edges(every: AllRuns) -> list[tuple[str, str, str, float]]:
  """Returns problem, variant, setting and value that is not inside its grid."""
  return [
    (problem, name, setting, tried.value)
    for problem, runs in every.items()
    for name in VARIANTS
    if runs.has([name])
    for setting, tried in runs.tried(name).items()
    if not tried.is_inside
  ]
