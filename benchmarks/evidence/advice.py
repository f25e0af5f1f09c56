"""What the records say, in the words of README and of the guide."""

import textwrap

from benchmarks.evidence import analysis, claims, page
from benchmarks.evidence.analysis import AllRuns
from benchmarks.evidence.problems import PROBLEMS
from benchmarks.evidence.variants import VARIANTS
from optax_sam.catalog import METHODS

# Largest numbers of gradients per step that are asked for.
_BUDGETS = {
  'Two gradients a step are fine': 2.1,
  'You want most of the gain for less': 1.6,
  'You can afford little more than one gradient': 1.25,
}


def name_of(variant: str) -> str:
  """Returns the title of a variant, with the name of its method."""
  found = VARIANTS[variant]
  method = next(
    (m.name for m in METHODS.values() if m.function is found.factory), None
  )
  return found.title if method is None else f'{found.title} (`{method}`)'


def which_method(every: AllRuns) -> str:
  """Returns the table of the best method for each budget.

  Budgets with the same best method have one row.
  """
  points = analysis.frontier(every)
  rows: dict[str, list[str]] = {}
  for situation, most in _BUDGETS.items():
    allowed = {
      name: (cost, gain)
      for name, (cost, gain) in points.items()
      if cost <= most and gain.mean is not None
    }
    methods = [name for name in allowed if VARIANTS[name].factory is not None]
    if not methods:
      continue
    best = max(methods, key=lambda name: allowed[name][1].mean)
    cost, gain = allowed[best]
    shown = f'{page.interval(gain)} at {cost:.2f} gradients'
    longer = [
      name
      for name in allowed
      if name not in methods and allowed[name][1].mean > allowed[best][1].mean
    ]
    for name in longer:
      cost, gain = allowed[name]
      shown += f'; {VARIANTS[name].title}: {page.interval(gain)} at {cost:.2f}'
    row = f'{name_of(best)} | {shown} |'
    rows.setdefault(row, []).append(situation)
  lines = ['| situation | method | mean gain |', '|---|---|---|']
  for row, situations in rows.items():
    first, *others = situations
    alike = [f', or {other[0].lower()}{other[1:]}' for other in others]
    lines.append(f'| {first}{"".join(alike)} | {row}')
  return '\n'.join(lines)


def verdicts(every: AllRuns) -> str:
  """Returns a line for each claim, and for SAM at equal cost."""
  lines = []
  for claim in claims.CLAIMS.values():
    found = analysis.results(every, claim)
    if any(result.mean.mean is not None for result in found):
      verdict = analysis.verdict(found)
      lines.append(f'- **{verdict.capitalize()}**: {claim.sentence}')
  lines += page.questions(every).splitlines()[:1]
  if page.missing(every):
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
