"""Results of the recorded runs: test accuracy and time of a step."""

import functools
import pathlib
import statistics
from collections.abc import Callable, Mapping

from benchmarks import speed_table
from benchmarks.evidence import analysis, formats, pictures
from benchmarks.evidence.problems import PROBLEMS
from benchmarks.evidence.runs import Runs
from benchmarks.evidence.variants import VARIANTS
from optax_sam.catalog import Method
from optax_sam.train.reports import paired

_RESULTS = pathlib.Path(pictures.__file__).parents[1] / 'results'
PICTURES = {
  name: _RESULTS / 'evidence' / name
  for name in (
    pictures.FRONTIER,
    pictures.PANELS,
    pictures.HEAT_MAP,
    pictures.OBSERVATIONS,
  )
} | {'speed.png': _RESULTS / 'speed.png'}


@functools.cache
def _runs() -> Mapping[str, Runs]:
  return analysis.load(_RESULTS / 'evidence')


def variants(method: Method) -> list[str]:
  """Returns the names of the compared variants of a method."""
  return [
    name
    for name, variant in VARIANTS.items()
    if variant.factory is method.function
    and variant.batch_fraction == 1
    and any(runs.has([name]) for runs in _runs().values())
  ]


def gains(method: Method) -> str:
  """Returns what a method gained over the base optimizer, by problem."""
  names = variants(method)
  rows = [
    [
      f'{PROBLEMS[problem].title} ({PROBLEMS[problem].unit})',
      *[_interval(_gain(runs, name)) for name in names],
    ]
    for problem, runs in _runs().items()
  ]
  means = [_interval(_mean_gain(name)) for name in names]
  rows.append(['mean, standard deviations between seeds', *means])
  return _table(['problem', *[VARIANTS[name].title for name in names]], rows)


def mean_gain(method: Method) -> str:
  """Returns the mean gain of the first variant, in standard deviations."""
  found = variants(method)
  return _interval(_mean_gain(found[0])) if found else 'not compared'


def _gain(runs: Runs, name: str) -> paired.Difference:
  return analysis.difference(runs, analysis.gain(name))


def _mean_gain(name: str) -> paired.Difference:
  return analysis.mean_difference(_runs(), analysis.gain(name))


@functools.cache
def _times() -> dict[str, dict[str, float]]:
  """Returns the time of a step relative to SGD, by row and network."""
  found: dict[str, dict[str, float]] = {}
  for entry in speed_table.read(_RESULTS / 'speed.csv'):
    if not entry.group.startswith('PyTorch'):
      found.setdefault(entry.row, {})[entry.problem] = entry.wall
  return found


def time(method: Method) -> str:
  """Returns median and range of the time of a step, SGD = 1, if measured."""
  rows = [x for x in _times() if x.partition(',')[0] == method.name]
  if not rows:
    return ''
  row = method.name if method.name in rows else rows[0]
  found = _times()[row].values()
  return (
    f'{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})'
  )


def _interval(found: paired.Difference) -> str:
  shown = formats.interval(found)
  center, space, interval = shown.partition(' ')
  return f'**{center}**{space}{interval}' if found.significant else shown


def _table(head: list[str], rows: list[list[str]]) -> str:
  lines = [f'| {" | ".join(line)} |' for line in (head, *rows)]
  lines.insert(1, '|---' * len(head) + '|')
  return '\n'.join(lines)


def _summary() -> str:
  """The methods of the picture, the best on average first."""
  rows = [
    [VARIANTS[name].title, f'{cost:.2f}', _interval(gain)]
    for name, (cost, gain) in sorted(
      analysis.frontier(_runs()).items(),
      key=lambda item: -(item[1][1].mean or 0),
    )
  ]
  head = ['method', 'gradients per step', 'mean gain, deviations']
  return _table(head, rows)


TABLES: dict[str, Callable[[], str]] = {
  'summary of the evidence': _summary,
}
