"""The page of the evidence: runs, comparisons and verdicts."""

import datetime as dt
import pathlib
import statistics
from collections.abc import Mapping

from benchmarks.evidence import claims
from benchmarks.evidence.claims import Claim, Comparison, Expected
from benchmarks.evidence.problems import PROBLEMS
from benchmarks.evidence.runs import Runs
from benchmarks.evidence.variants import BASE, VARIANTS
from optax_sam.train.reports import machine, paired

_MEASURES = {
  'test_accuracy': ('test accuracy, points', 100.0, 2),
  'sam_sharpness': ('SAM sharpness', 1.0, 4),
  'top_eigenvalue': ('top eigenvalue', 1.0, 2),
}

_INTRODUCTION = """\
# Evidence

Claims of the papers, tested on problems for two CPU cores. The results include
those that contradict a claim. These are small networks on few examples: results
at another scale may differ in both directions.

Every seed draws training and validation examples, initial parameters and order;
the test examples are always the same. The learning rate of the base optimizer
was chosen from {rates} values by the mean validation accuracy over {tuning}
seeds, and at that rate the radius of each method from {radii} values in the
same way. For methods that descend only on some examples, a third of that rate
was a further candidate. The tables compare test accuracies at the last step,
paired over {seeds} other seeds; brackets are 95 % Student-t intervals of the
mean difference. There is no correction for multiple comparisons: of twenty
comparisons without any effect, one interval is expected to exclude 0.

"On par" means that the whole interval is within {margin} points. Sharpness is
that of the training loss in evaluation mode: its rise after one ascent step of
length 0.05, and the largest eigenvalue of its Hessian.

{heading}.

`make evidence CLAIM=1` reruns one claim from scratch;
`python -m benchmarks.evidence` runs all missing ones. Every run, with its seed,
settings and versions, is in `benchmarks/results/evidence`, in one file per
problem.

![Test accuracy gained against gradients per step]({picture})

The plot shows means over the problems, with 95 % intervals over the seeds. A
gradient over a third of the examples counts as a third, and a forward pass as
a third of a gradient.
"""


def write(
  path: pathlib.Path,
  runs: Mapping[str, Runs],
  picture: str,
) -> None:
  """Writes the page atomically.

  Args:
    path: path of the Markdown file.
    runs: runs by problem; a claim is tested on problems with runs of all of its
      variants.
    picture: file name of the plot, in the same directory.
  """
  parts = [_introduction(runs, picture), _problems(runs)]
  for number, claim in claims.CLAIMS.items():
    names = [
      name
      for name in claims.problems_of(number)
      if name in runs and runs[name].has(claims.variants_of([number]))
    ]
    if names:
      parts.append(_claim(number, claim, {name: runs[name] for name in names}))
  parts.append(_accuracies(runs))
  temporary = path.with_suffix('.partial')
  temporary.write_text('\n'.join(parts), encoding='utf-8')
  temporary.replace(path)


def difference(runs: Runs, comparison: Comparison) -> paired.Difference:
  """Returns the paired difference of two variants."""
  first, second = (
    runs.by_seed(name, comparison.measure)
    for name in (comparison.variant, comparison.against)
  )
  return paired.paired_difference(first, second)


def verdict(found: paired.Difference, comparison: Comparison) -> str:
  """Returns the verdict on a difference: as expected, or not."""
  if found.mean is None:
    return 'not run'
  if found.interval is None:
    return found.reason
  low, high = found.interval
  margin = claims.MARGIN / 100
  expected = comparison.expected
  if expected is Expected.REPORTED:
    return ''
  if expected in (Expected.HIGHER, Expected.LOWER):
    if expected is Expected.LOWER:
      low, high = -high, -low
    if low > 0:
      return '**yes**'
    return '**no, the opposite**' if high < 0 else 'not significant'
  if low > -margin and (high < margin or expected is Expected.AT_LEAST_ON_PAR):
    return '**yes**'
  if low > 0:
    return '**better**'
  if high < 0:
    return '**no, worse**'
  return 'open: the interval is too wide'


def _introduction(runs: Mapping[str, Runs], picture: str) -> str:
  final, tuning = (
    {
      len({run.seed for run in problem.find(BASE, tuning=which)})
      for problem in runs.values()
    }
    for which in (False, True)
  )
  found = machine.describe()
  versions = {run.versions for problem in runs.values() for run in problem.all}
  return _INTRODUCTION.format(
    radii=len(VARIANTS['sam'].radii),
    rates=_counts({len(PROBLEMS[name].learning_rates) for name in runs}),
    tuning=_counts(tuning),
    seeds=_counts(final),
    margin=claims.MARGIN,
    heading=(
      f'{dt.datetime.now(dt.UTC):%Y-%m-%d}, {found["cores"]} cores of an '
      f'{found["processor"]}, {found["system"]}; {"; ".join(sorted(versions))}'
    ),
    picture=picture,
  )


def _counts(found: set[int]) -> str:
  return ' to '.join(str(count) for count in sorted({min(found), max(found)}))


def _problems(runs: Mapping[str, Runs]) -> str:
  lines = [
    '| problem | training examples | steps | batch | base, learning rate |',
    '|---|---|---|---|---|',
  ]
  for name, found in runs.items():
    problem = PROBLEMS[name]
    lines.append(
      f'| {problem.title} | {problem.examples} | {problem.steps} | '
      f'{problem.batch_size} | {problem.base}, {found.chosen(BASE)[0]:g} |'
    )
  return '\n'.join(lines) + '\n'


def _claim(number: int, claim: Claim, runs: Mapping[str, Runs]) -> str:
  titles = ' | '.join(PROBLEMS[name].title for name in runs)
  lines = [
    f'## {number}. {claim.sentence}',
    '',
    f'({claim.source})',
    '',
    f'| difference | expected | {titles} |',
    f'|---|---|{"---|" * len(runs)}',
  ]
  seen = dict.fromkeys(('yes', 'no', 'neither'), 0)
  for comparison in claim.comparisons:
    measure, factor, digits = _MEASURES[comparison.measure]
    cells = []
    for problem in runs.values():
      found = difference(problem, comparison)
      says = verdict(found, comparison)
      cells.append(f'{_interval(found, factor, digits)} {says}'.strip())
      kind = 'yes' if 'yes' in says or 'better' in says else 'neither'
      if found.interval is not None:
        seen['no' if '**no' in says else kind] += bool(says)
    of = '' if comparison.measure == 'test_accuracy' else f', {measure}'
    lines.append(
      f'| {VARIANTS[comparison.variant].title} against '
      f'{VARIANTS[comparison.against].title}{of} | '
      f'{comparison.expected.value} | {" | ".join(cells)} |'
    )
  total = sum(seen.values())
  if total:
    lines += [
      '',
      (
        f'Of {total} comparisons {seen["yes"]} agree with the claim, '
        f'{seen["no"]} contradict it, and {seen["neither"]} do neither.'
      ),
    ]
  return '\n'.join(lines) + '\n'


def _interval(found: paired.Difference, factor: float, digits: int) -> str:
  if found.mean is None:
    return ''
  center = f'{factor * found.mean:+.{digits}f}'
  if found.interval is None:
    return center
  low, high = (f'{factor * end:+.{digits}f}' for end in found.interval)
  return f'{center} [{low}, {high}]'


def _accuracies(runs: Mapping[str, Runs]) -> str:
  lines = [
    '## All variants',
    '',
    (
      'Mean test accuracy in percent; in brackets the chosen radius (of the '
      'base the learning rate), with a star if it is the first or the '
      'last candidate, and the fraction of steps with a perturbed gradient.'
    ),
    '',
    f'| variant | {" | ".join(PROBLEMS[name].title for name in runs)} |',
    f'|---|{"---|" * len(runs)}',
  ]
  for name, variant in VARIANTS.items():
    cells = []
    for problem in runs.values():
      final = problem.find(name, tuning=False)
      if not final:
        cells.append('')
        continue
      accuracy = statistics.fmean(r.outcome.test_accuracy for r in final)
      fraction = statistics.fmean(r.outcome.second_gradients for r in final)
      rate, rho = problem.chosen(name)
      at_end = rho in (min(variant.radii), max(variant.radii))
      how = (
        f'{rho:g}{"*" * at_end}, {fraction:.0%}'
        if variant.is_method
        else f'{rate:g}'
      )
      if variant.is_method and rate != problem.chosen(BASE)[0]:
        how += f', rate {rate:g}'
      cells.append(f'{100 * accuracy:.2f} ({how.replace("%", " %")})')
    if any(cells):
      lines.append(f'| {variant.title} | {" | ".join(cells)} |')
  return '\n'.join(lines) + '\n'
