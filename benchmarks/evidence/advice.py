"""What the records say, in the words of README and of the guide."""

import textwrap

from benchmarks.evidence import analysis, answers, claims, measurement
from benchmarks.evidence.analysis import AllRuns
from benchmarks.evidence.formats import interval
from benchmarks.evidence.problems import PROBLEMS
from benchmarks.evidence.variants import VARIANTS
from optax_sam.catalog import METHODS

# Largest numbers of gradients per step that are asked for.
_BUDGETS = {
  'Two gradients a step are fine': 2.1,
  'Most of the gain for less': 1.6,
  'Little more than one gradient': 1.25,
}
# Number of methods that are named for each.
_NAMED = 2


def name_of(variant: str) -> str:
  """Returns the title of a variant, with the name of its method."""
  title, method = VARIANTS[variant].title, _method(variant)
  return title if method is None else f'{title} (`{method}`)'


def _method(variant: str) -> str | None:
  """Returns the name of a variant in the catalog, if it has one."""
  factory = VARIANTS[variant].factory
  found = (m.name for m in METHODS.values() if m.function is factory)
  return next(found, None)


def _is_advice(variant: str) -> bool:
  return VARIANTS[variant].factory is None or _method(variant) is not None


def which_method(every: AllRuns) -> str:
  """Returns the table of the best methods for each budget.

  It has the method with the largest mean gain, and the next one if its gain is
  statistically significant; only rows of the catalog. Longer training is named
  before methods that gain less. Budgets with equal answers have one row.
  """
  points = analysis.frontier(every)
  rows: dict[str, list[str]] = {}
  for situation, most in _BUDGETS.items():
    ordered = sorted(
      (
        name
        for name, (cost, gain) in points.items()
        if cost <= most and gain.mean is not None and _is_advice(name)
      ),
      key=lambda name: -points[name][1].mean,
    )
    found, methods = [], 0
    for name in ordered:
      cost, gain = points[name]
      if VARIANTS[name].factory is not None:
        if methods and not (gain.significant and gain.mean > 0):
          continue
        methods += 1
      found.append(f'{name_of(name)}: {interval(gain)} at {cost:.2f}')
      if methods == _NAMED:
        break
    if methods:
      rows.setdefault('<br>'.join(found), []).append(situation)
  lines = ['| situation | methods, with their mean gain |', '|---|---|']
  for shown, (first, *others) in rows.items():
    alike = [f', or {other[0].lower()}{other[1:]}' for other in others]
    lines.append(f'| {first}{"".join(alike)} | {shown} |')
  return '\n'.join(lines)


def verdicts(every: AllRuns) -> str:
  """Returns a line for each claim, and for SAM at equal cost."""
  lines = []
  for claim in claims.CLAIMS.values():
    found = analysis.results(every, claim)
    if any(result.mean.mean is not None for result in found):
      verdict = analysis.verdict(found)
      lines.append(f'- **{verdict.capitalize()}**: {claim.sentence}')
  if any('on par' in line for line in lines):
    lines.append(
      f'- "On par" means a mean difference below {analysis.margin(every):.1f} '
      'standard deviations between seeds.'
    )
  lines += answers.questions(every).splitlines()[:1]
  if measurement.missing(every):
    whole = sum(not problem.in_appendix for problem in PROBLEMS.values())
    lines.insert(
      0,
      f'- **Not complete yet**: what follows is from {len(every)} of {whole} '
      'problems.',
    )
  wrapped = [
    textwrap.fill(line, 80, subsequent_indent='  ', break_long_words=False)
    for line in lines
  ]
  return '\n'.join(wrapped)
