"""The page of the evidence, written from the records."""

import datetime as dt
import math
import pathlib
import statistics
from collections.abc import Iterable, Sequence

from benchmarks.evidence import (
  analysis,
  claims,
  observations,
  pictures,
  workers,
)
from benchmarks.evidence.analysis import AllRuns, Result
from benchmarks.evidence.problems import PARTS, PROBLEMS
from benchmarks.evidence.variants import BASE, SAM, VARIANTS
from optax_sam.train.reports import machine, paired

FILE = 'evidence.md'
# The goal of the frontier: this share of SAM's gain at this cost.
_SHARE, _COST = 0.9, 1.2
_MEASURES = {
  'sam_sharpness': 'rise after an ascent step',
  'random_sharpness': 'rise under noise',
  'rounding_rise': 'rise under rounding to 4 bits',
  'top_eigenvalue': 'top eigenvalue',
}
_WORDS = {
  'yes': 'shown',
  'opposite': 'contradicted',
  'open': 'not shown',
  '': '',
}

_HOW = """\
## How it was measured

Every seed draws training and validation examples, wrong labels in both, initial
parameters and order; the test examples are always the same, with true labels.
Learning rate and radius of every variant, the base optimizer included, were
tuned with the search of `optax-sam compare --tune`: {trials} trials of all
steps ({shorter}: half of them), by the
score on the validation examples, with one seed (on the digits four) that no
comparison has. While the best value was the smallest or the largest one tried,
up to {wider} more trials went further. Then every variant ran with {seeds}
other seeds to the last step, without choosing a step.

A gain is a paired difference over the seeds, with a 95 % Student-t interval.
Scores of different problems have different units; so their mean is in standard
deviations between seeds: on each problem the median of those of the variants.
A claim that is rerun alone has the recorded deviations.
{units} "On par" means that two one-sided tests exclude a difference of
{margin} in the unit of the problem. Within a claim, p-values have Holm's
correction, those of the means and those of the single problems each.

The gradients of a step are those over the whole batch; a forward pass counts a
third of one. For methods that perturb some layers or use some examples, they
are the operations of the compiled step relative to the base optimizer's.

{heading}.

`python -m benchmarks.evidence` runs what is missing, resumes after an
interruption, and prints what is left; `--list` names every run, its state and
its command. `make evidence CLAIM=1` reruns one claim from nothing in
`runs/evidence`, and prints its verdict, the recorded one, and how many runs
have exactly the recorded scores. The runs, with seeds, settings and versions,
are in `benchmarks/results/evidence`, a CSV file for each problem.
"""


def write(
  directory: pathlib.Path, recorded: pathlib.Path | None = None
) -> pathlib.Path:
  """Writes page and pictures of the runs in a directory; returns its path.

  Args:
    directory: directory of the runs.
    recorded: see `analysis.load`.
  """
  every = analysis.load(directory, recorded=recorded)
  for runs in every.values():
    runs.sort()
  pictures.draw(directory, every)
  path = directory / FILE
  temporary = path.with_suffix('.partial')
  appendix = analysis.load(directory, in_appendix=True)
  temporary.write_text(text(every, appendix), encoding='utf-8')
  temporary.replace(path)
  return path


def text(every: AllRuns, appendix: AllRuns) -> str:
  """Returns the page, with other problems in an appendix."""
  found = {n: analysis.results(every, x) for n, x in claims.CLAIMS.items()}
  parts = [
    '# Evidence',
    f'![Gain against gradients per step]({pictures.FRONTIER})',
    missing(every),
    _summary(found, is_complete=not missing(every)),
    questions(every),
    '## Every method on every problem',
    (
      'Gain over the base optimizer with the same number of steps, in the unit '
      'of the problem. The colour is the gain in standard deviations between '
      'seeds; hatched cells have an interval that contains 0.'
    ),
    f'![Gain of each method on each problem]({pictures.HEAT_MAP})',
    '## The frontier',
    goal(every),
    f'![Gain against cost, by problem]({pictures.PANELS})',
    *(_claim(number, results) for number, results in found.items()),
    _questions_in_detail(every),
    '## What the papers start from',
    _OBSERVATIONS,
    f'![Four observations]({pictures.OBSERVATIONS})',
    _HOW.format(
      trials=workers.TRIALS,
      wider=workers.WIDER,
      shorter=_shorter(),
      seeds=_seeds(every),
      margin=claims.MARGIN,
      units=_units(every),
      heading=_heading(every),
    ),
    _problems(every),
    _settings(every),
    _appendix(appendix),
  ]
  return '\n\n'.join(part.strip() for part in parts if part) + '\n'


_OBSERVATIONS = """\
Sparse SAM: the entries in which SAM's gradient differs from SGD's, sorted, in
the first step and in the last eighth of a run. AE-SAM: quantiles of the squared
norms of the gradient, standardized by AE-SAM's running mean and variance,
against those of the normal law that it assumes (the line). Friendly SAM: what
SAM gains if only the running average of the gradient perturbs, and if only the
rest does. K-SAM: the gain against the number of examples of a batch, those with
the largest losses or random ones; 1 is SAM."""


def _summary(found: dict[int, list[Result]], *, is_complete: bool) -> str:
  """Returns a line for each claim, with its verdict."""
  verdict = 'verdict' if is_complete else 'verdict so far'
  lines = [f'| claim | {verdict} |', '|---|---|']
  for number, claim in claims.CLAIMS.items():
    if any(result.mean.mean is not None for result in found[number]):
      verdict = analysis.verdict(found[number])
      lines.append(
        f'| [{number}](#claim-{number}). {claim.sentence} | **{verdict}** |'
      )
  lines.append('')
  return '\n'.join(lines)


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
      f'between {_signed(rank[best])} ({_MEASURES[best]}) and '
      f'{_signed(rank[worst])} ({_MEASURES[worst]}); '
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
  share = cheap[best] / whole
  reached = 'reached' if share >= _SHARE else 'missed'
  return (
    f'SAM gains {interval(points[SAM][1])} deviations on average. The goal of '
    f'{_SHARE:.0%} of it at {_COST} gradients a step or less is {reached}: '
    f'{VARIANTS[best].title}, at {points[best][0]:.2f} gradients, has '
    f'{share:.0%} of it. The means of SAM on normalization layers are without '
    'the dense net, which has none.'
  ).replace('%', ' %')


def missing(every: AllRuns) -> str:
  """Names what has not run yet."""
  found = []
  for problem in PROBLEMS:
    if PROBLEMS[problem].in_appendix:
      continue
    could = claims.variants_of(problem)
    runs = every.get(problem)
    ran = sum(runs is not None and runs.has([name]) for name in could)
    if ran < len(could):
      some = f' ({ran} of {len(could)} variants)' if ran else ''
      found.append(f'{PROBLEMS[problem].title}{some}')
  if not found:
    return ''
  return f'**Not complete yet.** Missing: {"; ".join(found)}.'


def interval(found: paired.Difference, digits: int = 2) -> str:
  """Returns a mean difference and its interval."""
  if found.mean is None:
    return ''
  center = _signed(found.mean, digits)
  if found.interval is None:
    return center
  low, high = (_signed(end, digits) for end in found.interval)
  return f'{center} [{low}, {high}]'


def _signed(value: float, digits: int = 2) -> str:
  return f'{value:+.{digits}f}'.replace('-', '\N{MINUS SIGN}')


def _claim(number: int, found: Sequence[Result]) -> str:
  claim = claims.CLAIMS[number]
  names = [name for name in PROBLEMS if any(name in x.cells for x in found)]
  if not names:
    return ''
  titles = [PROBLEMS[name].title for name in names]
  lines = [
    f'<a id="claim-{number}"></a>',
    '',
    f'## {number}. {claim.sentence}',
    '',
    f'**{analysis.verdict(found).capitalize()}** ({claim.source}).',
    '',
    _row(['comparison', 'claimed', 'mean, deviations', *titles]),
    '|---' * (3 + len(names)) + '|',
  ]
  for result in found:
    comparison = result.comparison
    title = (
      f'{VARIANTS[comparison.variant].title} against '
      f'{VARIANTS[comparison.against].title}'
    )
    if comparison.measure != claims.SCORE:
      title += f': {_MEASURES[comparison.measure]}'
    mean = interval(result.mean)
    if result.says:
      mean = f'**{_WORDS[result.says]}**: {mean}'
    cells = []
    for name in names:
      cell = result.cells.get(name)
      shown = '' if cell is None else _short(cell)
      cells.append(shown)
    lines.append(_row([title, comparison.expected.value, mean, *cells]))
  return '\n'.join(lines)


def _short(found: paired.Difference) -> str:
  mean = found.mean or 0.0
  shown = _signed(mean, 1 if abs(mean) >= 1 else 2)
  return f'**{shown}**' if found.significant else shown


def _row(cells: Iterable[str]) -> str:
  return f'| {" | ".join(cells)} |'


def _questions_in_detail(every: AllRuns) -> str:
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
      f'{PARTS} times in a run of its length. A dash: most runs end below it.'
    ),
    '',
    _row(['method', *titles]),
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
    lines.append(_row([VARIANTS[name].title, *cells]))
  lines += [
    '',
    '## Flatness and score',
    '',
    (
      "Spearman's rank correlation over all runs with test seeds, of all "
      'variants; negative: flatter minima have better scores.'
    ),
    '',
    _row(['measure', *titles]),
    '|---' * (1 + len(titles)) + '|',
  ]
  for measure in claims.FLATNESS:
    cells = [
      _signed(analysis.rank_correlation(runs, measure)[0])
      for runs in every.values()
    ]
    lines.append(_row([_MEASURES[measure], *cells]))
  return '\n'.join(lines)


def _seeds(every: AllRuns) -> str:
  found = {
    len(runs.by_seed(name, claims.SCORE))
    for runs in every.values()
    for name in (BASE, SAM)
    if runs.has([name])
  }
  return ' to '.join(map(str, sorted(found)))


def _shorter() -> str:
  """Returns the networks whose trials take half of the steps."""
  found = [
    problem.title.rpartition(', ')[2]
    for problem in PROBLEMS.values()
    if problem.trial_length == 0.5
  ]
  return ' and '.join(found)


def _units(every: AllRuns) -> str:
  found = [
    f'{analysis.deviation(runs):.2f} {PROBLEMS[name].unit} on '
    f'{PROBLEMS[name].title}'
    for name, runs in every.items()
  ]
  return f'These are {"; ".join(found)}.'


def _heading(every: AllRuns) -> str:
  found = machine.describe()
  versions = {run.versions for runs in every.values() for run in runs.all}
  return (
    f'{dt.datetime.now(dt.UTC):%Y-%m-%d}, {found["cores"]} cores of an '
    f'{found["processor"]}, {found["system"]}; {"; ".join(sorted(versions))}'
  )


def _problems(every: AllRuns) -> str:
  lines = [
    _row(['problem', 'examples', 'steps', 'batch', 'base', 'base, SAM']),
    '|---|---|---|---|---|---|',
  ]
  for name, runs in every.items():
    problem = PROBLEMS[name]
    scores = ', '.join(
      f'{runs.mean(x, claims.SCORE):.2f}' for x in (BASE, SAM) if runs.has([x])
    )
    lines.append(
      _row(
        [
          problem.title,
          f'{problem.examples}',
          f'{problem.steps}',
          f'{problem.batch_size}',
          problem.base,
          f'{scores} ({problem.unit})',
        ]
      )
    )
  return '\n'.join(lines)


def _settings(every: AllRuns) -> str:
  edges = analysis.at_edges(every)
  outside = {(problem, name) for problem, name, *_ in edges}
  lines = [
    '## Chosen settings',
    '',
    (
      'Learning rate and radius, and the fraction of steps with a perturbed '
      f'gradient. {_why_at_edge(every, edges)}'
    ),
    '',
    _row(['variant', *(PROBLEMS[name].title for name in every)]),
    '|---' * (1 + len(every)) + '|',
  ]
  for name, variant in VARIANTS.items():
    cells = []
    for problem, runs in every.items():
      if not runs.has([name]):
        cells.append('')
        continue
      rate, rho = runs.chosen(name)
      star = '\\*' if (problem, name) in outside else ''
      cell = f'{rate:g}{star}'
      if variant.factory is not None:
        cell = f'{rate:g}, {rho:g}{star}'
        cell += f', {runs.mean(name, "second_gradients"):.0%}'
      cells.append(cell.replace('%', ' %'))
    if any(cells):
      lines.append(_row([variant.title, *cells]))
  return '\n'.join(lines)


def _why_at_edge(
  every: AllRuns, edges: Sequence[tuple[str, str, str, float]]
) -> str:
  """Says how many chosen values are at an edge of those tried, and which."""
  if not edges:
    return 'Each is between smaller and larger values that were tried.'
  text = (
    f'A star: a value at the edge of those tried, {len(edges)} in all; the '
    'search ended after its last trial there.'
  )
  smallest = sum(
    setting == 'rho' and value == every[problem].tried(name)[setting].low
    for problem, name, setting, value in edges
  )
  if smallest:
    text += (
      f' Of these, {smallest} are the smallest radius: no larger one had a '
      'better validation score.'
    )
  return text


def _appendix(every: AllRuns) -> str:
  if not every:
    return ''
  lines = [
    '## Appendix',
    '',
    (
      'Gains over the base optimizer on problems that are in no mean above, '
      'with 95 % intervals.'
    ),
    '',
    _row(
      [
        'method',
        *(f'{PROBLEMS[x].title}, {PROBLEMS[x].unit}' for x in every),
      ]
    ),
    '|---' * (1 + len(every)) + '|',
  ]
  for name, variant in VARIANTS.items():
    found = [
      analysis.difference(runs, analysis.gain(name)) for runs in every.values()
    ]
    if name != BASE and any(x.mean is not None for x in found):
      lines.append(_row([variant.title, *map(interval, found)]))
  return '\n'.join(lines)


def record(directory: pathlib.Path) -> None:
  """Trains what the observations need, if it is missing."""
  for name in ('digits_noise', 'conv', 'vit'):
    if name in analysis.load(directory):
      observations.record(directory, name)
