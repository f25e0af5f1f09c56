"""Answers to what users ask: cost, training time and flatness."""

import math
import statistics

from benchmarks.evidence import analysis, claims
from benchmarks.evidence.analysis import AllRuns
from benchmarks.evidence.formats import MEASURES, interval, row
from benchmarks.evidence.problems import PARTS, PROBLEMS
from benchmarks.evidence.variants import BASE, SAM, VARIANTS
from optax_sam.train.reports.formats import number

# The goal of the frontier: this share of SAM's gain at this cost.
_SHARE, _COST = 0.9, 1.2


def questions(every: AllRuns) -> str:
  """Returns the answers to what users ask, one line each."""
  lines = []
  twice = analysis.mean_difference(every, analysis.gain(SAM, 'base_twice'))
  if twice.interval is not None:
    low, high = twice.interval
    answer = 'yes' if low > 0 else 'no' if high < 0 else 'not clear'
    each = [
      analysis.difference(runs, analysis.gain(SAM, 'base_twice'))
      for runs in every.values()
    ]
    better, worse = (
      sum(x.significant and sign * (x.mean or 0) > 0 for x in each)
      for sign in (1, -1)
    )
    counts = (
      f'; better on {better} and worse on {worse} of {len(each)} problems'
    )
    lines.append(
      f'- **Does SAM beat training twice as long?** {answer.capitalize()}: '
      f'{interval(twice)} deviations on average'
      f'{counts if len(each) > 1 else ""}.'
    )
  fast = _first_to_target(every)
  if fast is not None:
    name, value, reached = fast
    over = ''
    if len(every) > 1:
      over = f' (geometric mean; {reached} of {len(every)} problems)'
    lines.append(
      "- **Which method reaches the base optimizer's best validation score "
      f'on most problems?** {VARIANTS[name].title}, with {value:.2f} times '
      f'the gradients{over}.'
    )
  rank = {
    measure: statistics.fmean(
      analysis.rank_correlation(runs, measure)[0] for runs in every.values()
    )
    for measure in claims.FLATNESS
    if every
  }
  rank = {name: value for name, value in rank.items() if math.isfinite(value)}
  if rank:
    best, worst = (of(rank, key=rank.__getitem__) for of in (min, max))
    lines.append(
      '- **Does a flatter minimum go with a better score?** The rank '
      'correlation over all runs of a problem, averaged over the problems, is '
      f'between {number(rank[best], "+.2f")} ({MEASURES[best]}) and '
      f'{number(rank[worst], "+.2f")} ({MEASURES[worst]}); '
      'negative if flatter minima have better scores.'
    )
  return '\n'.join(lines)


def _first_to_target(every: AllRuns) -> tuple[str, float, int] | None:
  """Returns the variant that reaches the most targets, at the least cost."""
  found = {}
  for name in VARIANTS:
    values = [
      analysis.gradients_to_target(runs, name)
      for runs in every.values()
      if runs.has([name])
    ]
    known = [value for value in values if value is not None]
    if name != BASE and known:
      found[name] = -len(known), statistics.geometric_mean(known)
  if not found:
    return None
  name = min(found, key=found.__getitem__)
  reached, value = found[name]
  return name, value, -reached


def goal(every: AllRuns) -> str:
  """Returns how near the cheap methods come to SAM's gain."""
  points = analysis.frontier(every)
  if SAM not in points or not points[SAM][1].mean:
    return ''
  whole = points[SAM][1].mean
  cheap = {
    name: gain.mean
    for name, (cost, gain) in points.items()
    if cost <= _COST and gain.mean is not None
  }
  if whole <= 0 or not cheap:
    return 'SAM has no mean gain on these problems.'
  best = max(cheap, key=cheap.__getitem__)
  more = 'at least' if cheap[best] >= _SHARE * whole else 'less than'
  cost, gain = points[best]
  title = VARIANTS[best].title
  return (
    f'SAM gains {interval(points[SAM][1])} deviations on average. We looked '
    f'for a method with {_SHARE:.0%} of this gain at {_COST} gradients a step '
    f'or less. {title[0].upper()}{title[1:]}, at {cost:.2f} gradients, gains '
    f'{interval(gain)}: {more} that. The means of SAM on normalization layers '
    'are without the dense net, which has none.'
  ).replace('%', ' %')


def tables(every: AllRuns) -> str:
  """Returns the tables of the times to target and of flatness."""
  names = [
    name
    for name in VARIANTS
    if name != BASE and any(runs.has([name]) for runs in every.values())
  ]
  titles = [PROBLEMS[name].title for name in every]
  lines = [
    "## Gradients to the base optimizer's best validation score",
    '',
    (
      'Relative to the base optimizer, median over the seeds; evaluated '
      f'{PARTS} times in a run of its length. A step counts with the average '
      'cost of the steps of its run. A dash: most runs end below it.'
    ),
    '',
    row(['method', *titles]),
    '|---' * (1 + len(titles)) + '|',
  ]
  for name in names:
    cells = []
    for runs in every.values():
      value = (
        analysis.gradients_to_target(runs, name) if runs.has([name]) else None
      )
      ran = '\N{EN DASH}' if runs.has([name]) else ''
      cells.append(ran if value is None else f'{value:.2f}')
    lines.append(row([VARIANTS[name].title, *cells]))
  lines += [
    '',
    '## Flatness and score',
    '',
    (
      "Spearman's rank correlation over all runs with test seeds, of all "
      'variants; negative: flatter minima have better scores.'
    ),
    '',
    row(['measure', *titles]),
    '|---' * (1 + len(titles)) + '|',
  ]
  for measure in claims.FLATNESS:
    cells = [
      number(analysis.rank_correlation(runs, measure)[0], '+.2f')
      for runs in every.values()
    ]
    lines.append(row([MEASURES[measure], *cells]))
  return '\n'.join(lines)
