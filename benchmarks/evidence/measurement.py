"""How the evidence was measured: problems, settings and what is missing."""

import datetime as dt
from collections.abc import Sequence

from benchmarks.evidence import analysis, claims, workers
from benchmarks.evidence.analysis import AllRuns
from benchmarks.evidence.formats import interval, row
from benchmarks.evidence.problems import PROBLEMS
from benchmarks.evidence.variants import BASE, SAM, VARIANTS
from optax_sam.train.reports import machine

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
The deviations are {units} If you rerun one claim, its means use these recorded
deviations.

"On par" means that two one-sided tests exclude a mean difference of {margin}
deviations, the average over the problems of {unit_margin} in their units.
Within a claim, p-values have Holm's correction, those of the means and those of
the single problems each. Intervals are not corrected, so a verdict may be "not
shown" although an interval excludes 0.

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

Two claims were rerun from nothing on 2026-12-01, and have the recorded
verdicts. Of claim 5, 75 of 75 runs have exactly the recorded scores; of claim
6, 35 of 60. The 25 others are those of all methods of this claim on
Fashion-MNIST 12k with wrong labels. For example, the search for SAM chose the
radius 0.1 instead of 0.025, and SAM has 84.38 points instead of 83.78. These
records must be made again.
"""


def text(every: AllRuns, appendix: AllRuns) -> str:
  """Returns the sections on the method, the problems and the settings."""
  how = _HOW.format(
    trials=workers.TRIALS,
    wider=workers.WIDER,
    shorter=_shorter(),
    seeds=_seeds(every),
    margin=f'{analysis.margin(every):.1f}',
    unit_margin=claims.MARGIN,
    units=_units(every),
    heading=_heading(every),
  )
  parts = how, _problems(every), _settings(every), _appendix(appendix)
  return '\n\n'.join(part.strip() for part in parts if part)


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
  return f'{"; ".join(found)}.'


def _heading(every: AllRuns) -> str:
  found = machine.describe()
  versions = {run.versions for runs in every.values() for run in runs.all}
  return (
    f'{dt.datetime.now(dt.UTC):%Y-%m-%d}, {found["cores"]} cores of an '
    f'{found["processor"]}, {found["system"]}; {"; ".join(sorted(versions))}'
  )


def _problems(every: AllRuns) -> str:
  lines = [
    row(['problem', 'examples', 'steps', 'batch', 'base', 'base, SAM']),
    '|---|---|---|---|---|---|',
  ]
  for name, runs in every.items():
    problem = PROBLEMS[name]
    scores = ', '.join(
      f'{runs.mean(x, claims.SCORE):.2f}' for x in (BASE, SAM) if runs.has([x])
    )
    lines.append(
      row(
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
    row(['variant', *(PROBLEMS[name].title for name in every)]),
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
      lines.append(row([variant.title, *cells]))
  return '\n'.join(lines)


def _why_at_edge(
  every: AllRuns, edges: Sequence[tuple[str, str, str, float]]
) -> str:
  """Says how many chosen values are at an edge of those tried, and which."""
  if not edges:
    return 'Each is between smaller and larger values that were tried.'
  text = (
    'A star marks a value at the edge of those tried, where the search ended '
    f'after its last trial; there are {len(edges)}.'
  )
  smallest = sum(
    setting == 'rho' and value == every[problem].tried(name)[setting].low
    for problem, name, setting, value in edges
  )
  if smallest:
    text += (
      f' {smallest} of them are the smallest radius tried: no larger one had a '
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
    row(
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
      lines.append(row([variant.title, *map(interval, found)]))
  return '\n'.join(lines)
