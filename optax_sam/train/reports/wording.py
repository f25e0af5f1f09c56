"""Sentences of the comparison report, for page and terminal."""

from collections.abc import Sequence

from optax_sam.train.reports.formats import count, interval, join, points
from optax_sam.train.reports.results import Comparison, Summary

# A sentence lists at most this many names.
NAMES_IN_SENTENCE = 4


def headline(comparison: Comparison, rows: Sequence[Summary]) -> str:
  """Returns the main result in one sentence, based on the intervals.

  Args:
    comparison: The measured comparison.
    rows: The summary of the comparison.

  Returns:
    The sentence, without a full stop.
  """
  base = comparison.base
  others = [row for row in rows if not row.is_base]
  if not any(row.seeds for row in rows):
    return 'No run finished: there is nothing to compare'
  if not comparison.scores(base):
    return f'No comparison: {base} has no complete run'
  if not others:
    return f'Only {base} has run: there is nothing to compare it with'
  judged = [row for row in others if row.difference.interval is not None]
  if not judged:
    if max(len(row.difference.by_seed) for row in others) == 1:
      return f'With one seed no difference to {base} can be tested'
    return f'No difference to {base} can be tested'
  better = [row for row in judged if _sign(row) > 0]
  worse = [row for row in judged if _sign(row) < 0]
  if not better and not worse:
    sizes = {len(row.difference.by_seed) for row in judged}
    seeds = count(max(sizes), 'seed')
    seeds = seeds if len(sizes) == 1 else f'at most {seeds}'
    if len(others) == 1:
      subject = f'The difference between {others[0].method} and {base}'
    else:
      subject = f"No method's difference to {base}"
    verb = 'is not' if len(others) == 1 else 'is'
    return f'{subject} {verb} statistically significant with {seeds}'
  parts = [
    _claim(group, adjective, base, len(others))
    for group, adjective in ((better, 'more'), (worse, 'less'))
    if group
  ]
  rest = len(others) - len(better) - len(worse)
  if rest:
    others_are = f'{rest} others are' if rest > 1 else '1 other is'
    parts.append(f'{others_are} not significantly different')
  return '; '.join(parts)


def _sign(row: Summary) -> int:
  if not row.difference.significant or row.difference.mean is None:
    return 0
  return 1 if row.difference.mean > 0 else -1


def _claim(
  group: Sequence[Summary], adjective: str, base: str, others: int
) -> str:
  values = [row.difference.mean or 0.0 for row in group]
  if len(group) > NAMES_IN_SENTENCE:
    most = max(range(len(group)), key=lambda index: abs(values[index]))
    return (
      f'{len(group)} of {others} methods are {adjective} accurate than {base},'
      f' {group[most].method} the most ({points(values[most])} points)'
    )
  verb = 'is' if len(group) == 1 else 'are'
  by = join([points(value) for value in values])
  names = join([row.method for row in group])
  return f'{names} {verb} {adjective} accurate than {base} ({by} points)'


def setup(comparison: Comparison) -> str:
  """Describes the comparison in one sentence."""
  methods = comparison.methods
  if not methods:
    return 'Nothing ran.'
  sentence = f'{join(methods)}'
  settings = comparison.settings
  if 'dataset' in settings:
    sentence += f' on {settings["dataset"]}'
  if 'model' in settings:
    sentence += f' with the model {settings["model"]}'
  seeds = count(len(comparison.seeds), 'seed')
  steps = count(comparison.total_steps, 'step')
  return f'{sentence}: {seeds}, {steps} per run.'


def findings(comparison: Comparison, rows: Sequence[Summary]) -> list[str]:
  """Returns further findings: sizes, cost, chance of false positives."""
  sentences = []
  judged = [row for row in rows if row.difference.interval is not None]
  unclear = [row for row in judged if not row.difference.significant]
  if unclear:
    row = max(unclear, key=lambda row: abs(row.difference.mean or 0.0))
    sentences.append(
      f'The largest difference that is not significant: {row.method} with'
      f' {points(row.difference.mean or 0.0)} points; its 95% interval, '
      f'{interval(row.difference)}, contains 0.'
    )
  if len(judged) > 1 and len(unclear) < len(judged):
    chance = min(100, 5 * len(judged))
    sentences.append(
      f'There are {len(judged)} intervals: if no method differed from'
      f' {comparison.base}, the probability that at least one of them excludes'
      f' 0 by chance could still be up to {chance}%.'
    )
  timed = [
    (row.relative_time, row.method)
    for row in rows
    if not row.is_base and row.relative_time is not None
  ]
  if timed:
    (low, cheapest), (high, dearest) = min(timed), max(timed)
    span = f'{low:.2f} ({cheapest}) to {high:.2f} ({dearest})'
    span = f'{high:.2f} ({dearest})' if len(timed) == 1 else span
    sentences.append(
      f'A step takes {span} times as long as one of {comparison.base}.'
    )
  return sentences


def warnings(comparison: Comparison, rows: Sequence[Summary]) -> list[str]:
  """Lists problems: interrupted and diverged runs, missing intervals."""
  sentences = []
  if comparison.interrupted:
    sentences.append('Interrupted: this comparison is incomplete.')
  asked = comparison.settings.get('methods')
  names = asked if isinstance(asked, list | tuple) else []
  absent = [str(name) for name in names if name not in comparison.methods]
  if absent:
    sentences.append(f'No run of {join(absent)}.')
  unfinished = sum(row.unfinished for row in rows)
  if unfinished:
    names = join([row.method for row in rows if row.unfinished])
    sentences.append(
      f'{count(unfinished, "run")} stopped early, not counted: {names}.'
    )
  diverged = [row for row in rows if row.diverged]
  if diverged:
    names = join([f'{row.method} ({row.diverged})' for row in diverged])
    sentences.append(
      f'Diverged, the loss is not finite: {names}. Such a run counts with its'
      ' last accuracy.'
    )
  idle = [
    row.method
    for row in rows
    if not row.is_base and comparison.did_nothing(row.method)
  ]
  if idle:
    sentences.append(
      f'{join(idle)} did the same as {comparison.base}: with these settings and'
      ' this number of steps the method had no effect.'
    )
  reasons: dict[str, list[str]] = {}
  for row in rows:
    if not row.is_base and row.difference.interval is None:
      reasons.setdefault(row.difference.reason, []).append(row.method)
  sentences += [
    f'No interval for {join(names)}: {reason}.'
    for reason, names in reasons.items()
  ]
  return sentences


def reading(comparison: Comparison) -> list[tuple[str, str]]:
  """Explains the terms of the page."""
  base = comparison.base
  size = ''
  if comparison.test_examples > 0:
    worth = 100 / comparison.test_examples
    size = (
      f' With {comparison.test_examples:,} test examples one example is worth'
      f' {worth:.2g} points.'
    )
  holding_out = [
    name
    for name in comparison.methods
    if any(run.validations for run in comparison.runs_of(name))
  ]
  others = ''
  if holding_out:
    others = (
      f' {join(holding_out)} trains on fewer examples, because it holds out'
      ' training examples for validation.'
    )
  return [
    (
      'Test accuracy',
      'Measured at the end of training, not the best of the run.' + size,
    ),
    (
      f'Difference to {base}',
      (
        'Runs with the same seed start from the same parameters and see the'
        ' examples in the same order, so their differences are paired. The'
        ' interval is a 95% confidence interval of the mean difference over'
        ' seeds. It covers the seed-to-seed variance, not the choice of test'
        ' examples.' + others
      ),
    ),
    (
      'Statistically significant',
      (
        'The 95% interval excludes 0. If it contains 0, this comparison does'
        ' not show which of the two is more accurate, and does not show that'
        ' they are equal. More seeds make the interval narrower.'
      ),
    ),
    (
      'Perturbed gradients',
      (
        'A sharpness-aware step computes a second gradient, at perturbed'
        ' parameters, which is most of the extra cost. Some methods skip it in'
        ' some steps.'
      ),
    ),
    (
      'Time per step',
      (
        f'Methods alternate with {base} in one process, so load on the machine'
        ' affects both. The times hold for this machine.'
      ),
    ),
    (
      'SAM sharpness, top eigenvalue',
      (
        'Two measures of the sharpness of the minimum. A flatter minimum alone'
        ' is not a better model: compare them together with the accuracy.'
      ),
    ),
  ]
