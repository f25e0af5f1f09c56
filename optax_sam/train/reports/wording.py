"""Numbers and findings of a comparison in words, for page and terminal."""

from collections.abc import Sequence

from optax_sam.train.reports.formats import count, interval, join, points
from optax_sam.train.reports.results import Comparison, Summary

# Above this many names a sentence counts instead of listing.
NAMES_IN_SENTENCE = 4


def headline(comparison: Comparison, rows: Sequence[Summary]) -> str:
  """Says in one sentence what came out; claims no more than the intervals.

  Args:
    comparison: What was measured.
    rows: Its summary.

  Returns:
    The sentence, without a full stop.
  """
  base = comparison.base
  others = [row for row in rows if not row.is_base]
  if not any(row.seeds for row in rows):
    return 'No run came to its end: there is nothing to compare'
  if not comparison.accuracies(base):
    return f'No comparison: {base} has no complete run'
  if not others:
    return f'Only {base} has run: there is nothing to compare it with'
  judged = [row for row in others if row.difference.interval is not None]
  if not judged:
    if max(len(row.difference.by_seed) for row in others) == 1:
      return f'With one seed no difference to {base} can be judged'
    return f'No difference to {base} can be judged'
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
    return f'{subject} {verb} resolved with {seeds}'
  parts = [
    _claim(group, adjective, base, len(others))
    for group, adjective in ((better, 'more'), (worse, 'less'))
    if group
  ]
  rest = len(others) - len(better) - len(worse)
  if rest:
    others_are = f'{rest} others are' if rest > 1 else '1 other is'
    parts.append(f'{others_are} not resolved')
  return '; '.join(parts)


def _sign(row: Summary) -> int:
  if not row.difference.resolved or row.difference.mean is None:
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
  """Says in one sentence what was compared."""
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
  return f'{sentence}: {seeds}, {steps} a run.'


def findings(comparison: Comparison, rows: Sequence[Summary]) -> list[str]:
  """Says what the headline leaves out: sizes, cost, the role of luck."""
  sentences = []
  judged = [row for row in rows if row.difference.interval is not None]
  unclear = [row for row in judged if not row.difference.resolved]
  if unclear:
    row = max(unclear, key=lambda row: abs(row.difference.mean or 0.0))
    sentences.append(
      f'The largest difference that is not resolved: {row.method} with'
      f' {points(row.difference.mean or 0.0)} points; its 95% interval, '
      f'{interval(row.difference)}, contains 0.'
    )
  if len(judged) > 1 and len(unclear) < len(judged):
    chance = min(100, 5 * len(judged))
    sentences.append(
      f'There are {len(judged)} intervals: if no method differed from'
      f' {comparison.base}, the chance that luck alone puts 0 outside one of'
      f' them could still be up to {chance}%.'
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
  """Says what is wrong or missing: stopped and diverged runs, no interval."""
  sentences = []
  if comparison.interrupted:
    sentences.append(
      'Interrupted: this comparison was stopped before its end and is'
      ' incomplete.'
    )
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
      f'Diverged, the loss is not a finite number: {names}. Such a run counts'
      ' with the accuracy it ended at.'
    )
  idle = [
    row.method
    for row in rows
    if not row.is_base and comparison.did_nothing(row.method)
  ]
  if idle:
    sentences.append(
      f'{join(idle)} did what {comparison.base} does: with these settings and'
      ' so many steps there was nothing else to do.'
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
  """Explains in plain words what the page shows, term by term."""
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
      f' Not those of {join(holding_out)}: training examples are held out'
      ' there to validate on, and only the others are trained on.'
    )
  return [
    (
      'Test accuracy',
      'Measured at the end of training, not at its best.' + size,
    ),
    (
      f'Difference to {base}',
      (
        'Runs with the same seed start from the same parameters and see the'
        ' examples in the same order, so they are compared seed by seed. The'
        ' interval says where the mean difference over all possible seeds'
        ' plausibly lies. It covers the luck of the seed, not the luck of which'
        ' test examples there are.' + others
      ),
    ),
    (
      'Resolved',
      (
        'The interval leaves out 0. If it contains 0, this comparison does not'
        ' show which of the two is more accurate; that is not the same as'
        ' showing that they are equal. More seeds make the interval narrower.'
      ),
    ),
    (
      'Second gradients',
      (
        'A sharpness-aware step takes a second gradient, at perturbed'
        ' parameters; it is most of the extra cost. Some methods skip it at'
        ' some steps.'
      ),
    ),
    (
      'Time of a step',
      (
        f'Methods take turns with {base} in the same process, so that a slow'
        ' moment of the machine hits both. It holds for this machine.'
      ),
    ),
    (
      'SAM sharpness, top eigenvalue',
      (
        'Two measures of how sharp the minimum is. A flatter minimum is not by'
        ' itself a better model: compare them together with the accuracy.'
      ),
    ),
  ]
