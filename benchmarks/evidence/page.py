"""The page of the evidence, written from the records."""

import pathlib
from collections.abc import Sequence

from benchmarks.evidence import (
  analysis,
  answers,
  claims,
  measurement,
  pictures,
)
from benchmarks.evidence.analysis import AllRuns, Result
from benchmarks.evidence.formats import MEASURES, interval, row, short
from benchmarks.evidence.problems import PROBLEMS
from benchmarks.evidence.runs import Runs
from benchmarks.evidence.variants import SAM, VARIANTS

FILE = 'evidence.md'
# A difference of fewer deviations counts as none.
_EQUAL = 0.01
_WORDS = {
  'yes': 'shown',
  'opposite': 'contradicted',
  'open': 'not shown',
  '': '',
}

_OBSERVATIONS = f"""\
## What the papers start from

Sparse SAM: the entries in which SAM's gradient differs from SGD's, sorted, in
the first step and in the last eighth of a run. AE-SAM: quantiles of the squared
norms of the gradient, standardized by AE-SAM's running mean and variance,
against those of the normal law that it assumes (the line). Friendly SAM: what
SAM gains if only the running average of the gradient perturbs, and if only the
rest does. K-SAM: the gain against the number of examples of a batch, those with
the largest losses or random ones; 1 is SAM.

![Four observations]({pictures.OBSERVATIONS})"""


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
  is_complete = not measurement.missing(every)
  pictures.draw(directory, every, with_observations=is_complete)
  path = directory / FILE
  temporary = path.with_suffix('.partial')
  appendix = analysis.load(directory, in_appendix=True)
  temporary.write_text(text(every, appendix), encoding='utf-8')
  temporary.replace(path)
  return path


def text(every: AllRuns, appendix: AllRuns) -> str:
  """Returns the page, with other problems in an appendix."""
  found = {n: analysis.results(every, x) for n, x in claims.CLAIMS.items()}
  missing = measurement.missing(every)
  parts = [
    '# Evidence',
    f'![Gain against gradients per step]({pictures.FRONTIER})',
    missing,
    _summary(found, is_complete=not missing),
    answers.questions(every),
    '## Every method on every problem',
    (
      'Gain over the base optimizer with the same number of steps, in the unit '
      'of the problem. The colour is the gain in standard deviations between '
      'seeds; hatched cells have an interval that contains 0.'
    ),
    f'![Gain of each method on each problem]({pictures.HEAT_MAP})',
    '## The frontier',
    answers.goal(every),
    f'![Gain against cost, by problem]({pictures.PANELS})',
    '## Claim by claim',
    _reading(every),
    *(_claim(number, results) for number, results in found.items()),
    answers.tables(every),
    '' if missing else _OBSERVATIONS,
    measurement.text(every, appendix),
  ]
  return '\n\n'.join(part.strip() for part in parts if part) + '\n'


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


def _reading(every: AllRuns) -> str:
  """Says how to read the tables of the claims."""
  text = (
    'Differences on a problem are in its unit; bold ones are statistically '
    "significant after Holm's correction."
  )
  for name, runs in every.items():
    if _is_nearly_equal(runs):
      text += (
        f' On {PROBLEMS[name].title} the chosen radius of SAM is '
        f'{runs.chosen(SAM)[1]:.1g}, and SAM has the score of the base '
        'optimizer. Such differences are a part of the means.'
      )
  return text


def _is_nearly_equal(runs: Runs) -> bool:
  mean = analysis.difference(runs, analysis.gain(SAM)).mean
  return mean is not None and abs(mean) < _EQUAL * analysis.deviation(runs)


def _claim(number: int, found: Sequence[Result]) -> str:
  claim = claims.CLAIMS[number]
  names = [name for name in PROBLEMS if any(name in x.cells for x in found)]
  if not names:
    return ''
  titles = [PROBLEMS[name].title for name in names]
  lines = [
    f'<a id="claim-{number}"></a>',
    '',
    f'### {number}. {claim.sentence}',
    '',
    f'**{analysis.verdict(found).capitalize()}** ({claim.source}).',
    '',
    row(['comparison', 'claimed', 'mean, deviations', *titles]),
    '|---' * (3 + len(names)) + '|',
  ]
  for result in found:
    comparison = result.comparison
    title = (
      f'{VARIANTS[comparison.variant].title} against '
      f'{VARIANTS[comparison.against].title}'
    )
    if comparison.measure != claims.SCORE:
      title += f': {MEASURES[comparison.measure]}'
    mean = interval(result.mean)
    if result.says:
      mean = f'**{_WORDS[result.says]}**: {mean}'
    cells = []
    for name in names:
      cell = result.cells.get(name)
      shown = '' if cell is None else short(cell)
      cells.append(shown)
    lines.append(row([title, comparison.expected.value, mean, *cells]))
  return '\n'.join(lines)
