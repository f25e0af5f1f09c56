"""Tables of the recorded runs: test accuracy and time of a step."""

import csv
import functools
import pathlib
import statistics
from collections.abc import Callable

from benchmarks.evidence import page, picture
from benchmarks.evidence.claims import Comparison, Expected
from benchmarks.evidence.problems import PROBLEMS
from benchmarks.evidence.runs import Runs
from benchmarks.evidence.variants import BASE, VARIANTS
from optax_sam.catalog import METHODS, Method
from optax_sam.train.reports import paired

_RESULTS = pathlib.Path(page.__file__).parents[1] / 'results'
PICTURES = {'evidence.png': _RESULTS / 'evidence' / 'evidence.png'}


@functools.cache
def _runs() -> dict[str, Runs]:
  return {name: Runs(_RESULTS / 'evidence', name) for name in PROBLEMS}


@functools.cache
def _points() -> dict[str, tuple[float, paired.Difference]]:
  return picture.points(_runs())


def variants(method: Method) -> list[str]:
  """Returns the names of the compared variants of a method."""
  return [
    name
    for name, variant in VARIANTS.items()
    if variant.factory is method.function and variant.batch_fraction == 1
  ]


def gains(method: Method) -> str:
  """Returns what a method gained over the base optimizer, by problem."""
  names = variants(method)
  rows = [
    [PROBLEMS[problem].title, *[_gain(runs, name) for name in names]]
    for problem, runs in _runs().items()
  ]
  means = [
    _interval(_points()[name][1]) if name in _points() else '' for name in names
  ]
  if any(means):
    rows.append(['mean over the problems', *means])
  return _table(['problem', *[VARIANTS[name].title for name in names]], rows)


def mean_gain(method: Method) -> str:
  """Returns the mean gain of the first variant that ran on all problems."""
  found = (name for name in variants(method) if name in _points())
  name = next(found, None)
  return 'not compared' if name is None else _interval(_points()[name][1])


@functools.cache
def _times() -> dict[str, dict[str, float]]:
  """Returns the time of a step relative to SGD, by row and network."""
  found: dict[str, dict[str, float]] = {}
  path = _RESULTS / 'speed.csv'
  with path.open(encoding='utf-8', newline='') as file:
    for line in csv.DictReader(file):
      framework, comma, _ = line['group'].partition(', ')
      name = f'{framework}: {line["row"]}' if comma else line['row']
      found.setdefault(name, {})[line['problem']] = float(line['wall'])
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


def _gain(runs: Runs, name: str) -> str:
  comparison = Comparison(name, BASE, Expected.REPORTED)
  found = page.difference(runs, comparison)
  return '' if found.mean is None else _interval(found)


def _interval(found: paired.Difference) -> str:
  center = f'{100 * found.mean:+.1f}'
  if found.interval is None:
    return center
  low, high = (f'{100 * end:+.1f}' for end in found.interval)
  center = f'**{center}**' if found.significant else center
  return f'{center} [{low}, {high}]'.replace('-', '\N{MINUS SIGN}')


def _table(head: list[str], rows: list[list[str]]) -> str:
  lines = [f'| {" | ".join(line)} |' for line in (head, *rows)]
  lines.insert(1, '|---' * len(head) + '|')
  return '\n'.join(lines)


def _summary() -> str:
  """The methods of the picture, the best on average first."""
  rows = [
    [VARIANTS[name].title, f'{cost:.2f}', _interval(gain)]
    for name, (cost, gain) in sorted(
      _points().items(), key=lambda item: -(item[1][1].mean or 0)
    )
  ]
  head = ['method', 'gradients per step', 'gain in test accuracy, points']
  return _table(head, rows)


def _by_problem() -> str:
  """Gains without intervals, with colours from red to green."""
  rows = []
  for name in _points():
    cells = []
    for runs in _runs().values():
      found = page.difference(runs, Comparison(name, BASE, Expected.REPORTED))
      points = 100 * (found.mean or 0)
      part = max(-1.0, min(points / 3, 1.0))
      colour = '76, 175, 80' if part > 0 else '229, 57, 53'
      text = f'{points:+.1f}'.replace('-', '\N{MINUS SIGN}')
      text = f'<b>{text}</b>' if found.significant else text
      cells.append(
        f'<td style="background: rgba({colour}, {0.6 * abs(part):.2f})">'
        f'{text}</td>'
      )
    rows.append(f'<tr><td>{VARIANTS[name].title}</td>{"".join(cells)}</tr>')
  titles = ['method', *[PROBLEMS[name].title for name in _runs()]]
  head = ''.join(f'<th>{title}</th>' for title in titles)
  return f'<table><tr>{head}</tr>{"".join(rows)}</table>'


def _speed() -> str:
  """Times on the larger network of each kind."""
  kinds = ('dense', 'conv', 'transformer')
  rows = []
  for name, found in _times().items():
    title = f'`{name}`' if name in METHODS else name
    times = [found.get(f'{kind}, large') for kind in kinds]
    rows.append([title, *('' if x is None else f'{x:.2f}' for x in times)])
  return _table(['step', *kinds], rows)


TABLES: dict[str, Callable[[], str]] = {
  'gains by problem': _by_problem,
  'speed': _speed,
  'summary of the evidence': _summary,
}
