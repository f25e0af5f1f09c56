"""Sentences about a comparison, for page and terminal."""

from collections.abc import Sequence

from optax_sam.train.reports import formats
from optax_sam.train.reports.display import title
from optax_sam.train.reports.formats import count, join
from optax_sam.train.reports.results import Comparison
from optax_sam.train.reports.summary import Summary

# A sentence lists at most this many names.
NAMES_IN_SENTENCE = 4


def headline(comparison: Comparison, rows: Sequence[Summary]) -> str:
  """Returns the main result in one sentence: only significant differences."""
  base, metric = title(comparison.base), comparison.metric
  others = [row for row in rows if not row.is_base]
  if not any(row.seeds for row in rows):
    return 'No run finished'
  if not comparison.scores(comparison.base):
    return f'No comparison: {base} has no complete run'
  if not others:
    score = formats.score(rows[0].score, metric) + '%' * metric.percent
    return f'{base} on {data(comparison)}: {score} test {metric.title}'
  if not any(row.difference.interval for row in others):
    one = 'With one seed no' if len(comparison.seeds) == 1 else 'No'
    return f'{one} difference to {base} can be tested'
  parts = [
    _claim(comparison, group, word)
    for word in ('better', 'worse')
    if (group := [row for row in others if row.difference.verdict == word])
  ]
  rest = sum(not row.difference.significant for row in others)
  if parts and rest:
    parts.append(f'no clear difference for {count(rest, "other")}')
  seeds = count(len(comparison.seeds), 'seed')
  return '; '.join(parts) or f'No clear difference to {base}, with {seeds}'


def _claim(comparison: Comparison, group: Sequence[Summary], word: str) -> str:
  metric = comparison.metric
  than = f'a {word} test {metric.title} than {title(comparison.base)}'
  sizes = [formats.gain(row.difference.mean, metric) for row in group]
  names, unit = [title(row.method) for row in group], ' points' * metric.percent
  if len(group) > NAMES_IN_SENTENCE:
    gains = [abs(row.difference.mean or 0.0) for row in group]
    most = gains.index(max(gains))
    largest = f'{names[most]} the most ({sizes[most]}{unit})'
    return f'{len(group)} methods have {than}, {largest}'
  verb = 'has' if len(group) == 1 else 'have'
  return f'{join(names)} {verb} {than} ({join(sizes)}{unit})'


def data(comparison: Comparison) -> str:
  """Returns the name of the dataset."""
  return str(comparison.settings.get('dataset', 'own data'))


def setup(comparison: Comparison) -> str:
  """Describes the comparison in one line."""
  noise = comparison.settings.get('label_noise')
  steps = count(comparison.total_steps, 'step')
  if comparison.budget != 'steps':
    steps = f'{comparison.budget} of {steps} of {title(comparison.base)}'
  parts = [
    data(comparison),
    str(comparison.settings.get('model', 'own model')),
    count(len(comparison.seeds), 'seed'),
    f'{steps} per run',
  ]
  if isinstance(noise, float) and noise:
    parts.insert(1, f'{100 * noise:.3g}% wrong training labels')
  return ', '.join(parts)


def warnings(comparison: Comparison, rows: Sequence[Summary]) -> list[str]:
  """Lists problems: interrupted and diverged runs, missing intervals."""
  base, asked = title(comparison.base), comparison.settings.get('methods')
  names = asked if isinstance(asked, list | tuple) else []
  others = [row for row in rows if not row.is_base]
  stopped = [run.stopped for run in comparison.runs if run.stopped]
  groups: dict[str, list[str]] = {
    'No run of {}.': [str(x) for x in names if x not in comparison.methods],
    '{} stopped early; such runs are not counted.': [
      row.method for row in rows if row.unfinished
    ],
    f'{{}} diverged{f" ({stopped[0]})" if stopped else ""}; such a run counts'
    f' with its last {comparison.metric.title}, or with its worst one if the'
    ' last is not finite.': [row.method for row in rows if row.diverged],
    f'{{}} did the same as {base}: with these settings and this number of'
    ' steps the method had no effect.': [
      row.method for row in others if comparison.did_nothing(row.method)
    ],
  }
  for row in others:
    if row.difference.interval is None:
      sentence = f'No interval for {{}}: {row.difference.reason}.'
      groups.setdefault(sentence, []).append(row.method)
  first = ['Interrupted: this comparison is incomplete.']
  return first * comparison.interrupted + [
    sentence.replace('{}', join([title(name) for name in found]))
    for sentence, found in groups.items()
    if found
  ]
