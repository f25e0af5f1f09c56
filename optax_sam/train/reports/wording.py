"""Sentences of the comparison report, for page and terminal."""

from collections.abc import Sequence

from optax_sam.train.reports import formats
from optax_sam.train.reports.display import title
from optax_sam.train.reports.formats import count, join
from optax_sam.train.reports.results import Comparison
from optax_sam.train.reports.summary import Summary

# A sentence lists at most this many names.
NAMES_IN_SENTENCE = 4


def headline(comparison: Comparison, rows: Sequence[Summary]) -> str:
  """Returns the main result in one sentence: only significant differences.

  Args:
    comparison: The measured comparison.
    rows: The summary of the comparison.

  Returns:
    The sentence, without a full stop.
  """
  base = title(comparison.base)
  others = [row for row in rows if not row.is_base]
  if not any(row.seeds for row in rows):
    return 'No run finished: there is nothing to compare'
  if not comparison.scores(comparison.base):
    return f'No comparison: {base} has no complete run'
  if not others:
    return f'Only {base} has run: there is nothing to compare it with'
  judged = [row for row in others if row.difference.interval is not None]
  if not judged:
    one = max(len(row.difference.by_seed) for row in others) == 1
    with_one = 'With one seed no' if one else 'No'
    return f'{with_one} difference to {base} can be tested'
  found = [row for row in judged if row.difference.significant]
  if not found:
    seeds = max(len(row.difference.by_seed) for row in judged)
    names = title(others[0].method) if len(others) == 1 else 'any method'
    return f'No clear difference between {names} and {base}, {_seeds(seeds)}'
  metric = comparison.metric
  better = [row for row in found if formats.is_better(row.difference, metric)]
  worse = [row for row in found if row not in better]
  parts = [
    _claim(comparison, group, word, len(others))
    for group, word in ((better, 'better'), (worse, 'worse'))
    if group
  ]
  rest = len(others) - len(found)
  if rest:
    parts.append(f'no clear difference for {count(rest, "other")}')
  return '; '.join(parts)


def _seeds(number: int) -> str:
  return f'with {count(number, "seed")}'


def _claim(
  comparison: Comparison, group: Sequence[Summary], word: str, others: int
) -> str:
  metric, base = comparison.metric, title(comparison.base)
  values = [row.difference.mean or 0.0 for row in group]
  sizes = [formats.gain(value, metric) for value in values]
  what, unit = f'test {formats.name_of(metric)}', formats.unit(metric)
  if len(group) > NAMES_IN_SENTENCE:
    most = max(range(len(group)), key=lambda index: abs(values[index]))
    return (
      f'{len(group)} of {others} methods have a {word} {what} than {base},'
      f' {title(group[most].method)} the most ({sizes[most]}{unit})'
    )
  verb = 'has' if len(group) == 1 else 'have'
  names = join([title(row.method) for row in group])
  return f'{names} {verb} a {word} {what} than {base} ({join(sizes)}{unit})'


def setup(comparison: Comparison) -> str:
  """Describes the comparison in one sentence."""
  names = [title(method) for method in comparison.methods]
  if not names:
    return 'Nothing ran.'
  settings = comparison.settings
  sentence = join(names)
  if 'dataset' in settings:
    sentence += f' on {settings["dataset"]}'
  if 'model' in settings:
    sentence += f' with the model {settings["model"]}'
  noise = settings.get('label_noise')
  if isinstance(noise, float) and noise:
    sentence += f' and {100 * noise:.3g}% wrong training labels'
  seeds = count(len(comparison.seeds), 'seed')
  steps = f'{count(comparison.total_steps, "step")} per run'
  if comparison.budget == 'gradients':
    steps = f'gradients of {comparison.total_steps:,} base steps per run'
  elif comparison.budget == 'seconds':
    steps = f'time of {comparison.total_steps:,} base steps per run'
  return f'{sentence}: {seeds}, {steps}.'


def findings(comparison: Comparison, rows: Sequence[Summary]) -> list[str]:
  """Returns further findings: the largest unclear difference, the cost."""
  sentences = []
  metric, base = comparison.metric, title(comparison.base)
  unclear = [
    row
    for row in rows
    if row.difference.interval is not None and not row.difference.significant
  ]
  if unclear:
    row = max(unclear, key=lambda row: abs(row.difference.mean or 0.0))
    sentences.append(
      f'The largest difference that is not clear: {title(row.method)} with'
      f' {formats.gain(row.difference.mean or 0.0, metric)}'
      f'{formats.unit(metric)}; its 95% interval is'
      f' {formats.interval(row.difference, metric)}.'
    )
  timed = [
    (row.relative_time, title(row.method))
    for row in rows
    if not row.is_base and row.relative_time is not None
  ]
  if timed:
    (low, cheapest), (high, dearest) = min(timed), max(timed)
    span = f'{low:.2f} times as long as one of {base} with {cheapest}'
    if len(timed) > 1:
      span += f', {high:.2f} times with {dearest}'
    sentences.append(f'A step takes {span}.')
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
    sentences.append(f'No run of {join([title(name) for name in absent])}.')
  unfinished = sum(row.unfinished for row in rows)
  if unfinished:
    names = join([title(row.method) for row in rows if row.unfinished])
    sentences.append(
      f'{count(unfinished, "run")} stopped early, not counted: {names}.'
    )
  diverged = [
    f'{title(row.method)} ({row.diverged})' for row in rows if row.diverged
  ]
  if diverged:
    name = formats.name_of(comparison.metric)
    sentences.append(
      f'Diverged: {join(diverged)}. Such a run counts with its last {name}, or'
      ' with its worst one if the last is not finite.'
    )
  idle = [
    title(row.method)
    for row in rows
    if not row.is_base and comparison.did_nothing(row.method)
  ]
  if idle:
    sentences.append(
      f'{join(idle)} did the same as {title(comparison.base)}: with these'
      ' settings and this number of steps the method had no effect.'
    )
  reasons: dict[str, list[str]] = {}
  for row in rows:
    if not row.is_base and row.difference.interval is None:
      reasons.setdefault(row.difference.reason, []).append(title(row.method))
  sentences += [
    f'No interval for {join(names)}: {reason}.'
    for reason, names in reasons.items()
  ]
  return sentences
