"""The speed table as Markdown, CSV and a plot."""

import contextlib
import csv
import dataclasses
import datetime as dt
import itertools
import pathlib
import platform
import statistics
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import jax

from optax_sam.train.reports import machine


@dataclasses.dataclass(frozen=True)
class Entry:
  """One row of the table, on one problem; ratios are to SGD.

  Attributes:
    problem: kind and size of the network.
    row: name of the row.
    group: its heading.
    wall: median ratio of the time of a step.
    low: its lower quartile.
    high: its upper quartile.
    milliseconds: median time of a step.
    flops: ratio of the floating-point operations of a full step, if known.
    memory: ratio of peak memory: arguments, results and temporary arrays.
    copies: difference of that memory, in copies of the parameters.
    fraction: fraction of steps that took a perturbed gradient.
    gradients: expected cost of a step in gradients; None if it follows from
      `fraction`.
    counterpart: row of another framework with the same method.
  """

  problem: str
  row: str
  group: str
  wall: float
  low: float
  high: float
  milliseconds: float
  flops: float | None = None
  memory: float | None = None
  copies: float | None = None
  fraction: float | None = None
  gradients: float | None = None
  counterpart: str | None = None

  @property
  def expected(self) -> float:
    """Cost of a step in gradients, of the steps that were taken."""
    if self.gradients is not None:
      return self.gradients
    return 1 + (self.fraction or 0)

  @property
  def overhead(self) -> float:
    """Time of a step over the expected time of its gradients."""
    return self.wall / self.expected


def heading() -> str:
  """Returns date, hardware and versions."""
  found = machine.describe()
  parts = [
    f'{dt.datetime.now(dt.UTC):%Y-%m-%d}',
    f'{found["cores"]} cores of an {found["processor"]}',
    found['system'],
    f'Python {platform.python_version()}',
    f'JAX {jax.__version__}',
  ]
  for name, package in (
    ('PyTorch', 'torch'),
    ('pytorch_optimizer', 'pytorch_optimizer'),
  ):
    with contextlib.suppress(metadata.PackageNotFoundError):
      parts.append(f'{name} {metadata.version(package)}')
  return ', '.join(parts)


def markdown(entries: Sequence[Entry]) -> str:
  """Returns a table for each problem."""
  parts = []
  for problem, found in itertools.groupby(entries, lambda e: e.problem):
    parts.append(f'### {problem}')
    lines = [
      (
        '| step | time | quartiles | time / gradients | operations | memory '
        '| copies | perturbed gradients | ms |'
      ),
      '|---|---|---|---|---|---|---|---|---|',
    ]
    group = None
    for entry in found:
      if entry.group != group:
        group = entry.group
        lines.append(f'| **{group}** |||||||||')
      lines.append(_line(entry))
    parts.append('\n'.join(lines))
  return '\n\n'.join(parts) + '\n'


def _line(entry: Entry) -> str:
  def number(value: float | None, digits: int = 2) -> str:
    return '' if value is None else f'{value:.{digits}f}'

  fraction = '' if entry.fraction is None else f'{100 * entry.fraction:.0f} %'
  cells = (
    entry.row,
    number(entry.wall),
    f'{entry.low:.2f} to {entry.high:.2f}',
    number(entry.overhead),
    number(entry.flops, 3),
    number(entry.memory),
    number(entry.copies),
    fraction,
    number(entry.milliseconds),
  )
  return f'| {" | ".join(cells)} |'


def overview(
  entries: Sequence[Entry],
  names: Sequence[tuple[str, str]],
  problems: Sequence[str],
) -> str:
  """Returns the time of a step relative to SGD, a table for each group.

  The gradients of a step are the median over the networks, if they depend on
  the steps that are taken.

  Args:
    entries: the rows of all networks; a network may lack some.
    names: group and name of the rows in their order; others come last.
    problems: names of the networks, one column each.
  """
  found: dict[tuple[str, str], dict[str, Entry]] = {}
  for entry in entries:
    if entry.problem in problems:
      key = entry.group, entry.row
      found.setdefault(key, {})[entry.problem] = entry
  ordered = dict.fromkeys([*(key for key in names if key in found), *found])
  parts = []
  for group, keys in itertools.groupby(ordered, lambda key: key[0]):
    lines = [
      f'| step | gradients | {" | ".join(problems)} |',
      f'|---|---|{"---|" * len(problems)}',
    ]
    for key in keys:
      measured = found[key]
      counts = [entry.expected for entry in measured.values()]
      times = [
        f'{measured[name].wall:.2f}' if name in measured else ''
        for name in problems
      ]
      cells = (title(key[1], group), f'{statistics.median(counts):.2f}', *times)
      lines.append(f'| {" | ".join(cells)} |')
    parts.append(f'### {group[0].upper()}{group[1:]}\n\n' + '\n'.join(lines))
  return '\n\n'.join(parts) + '\n'


def title(row: str, group: str = '') -> str:
  """Returns the name of a row, with the name of a method as code."""
  name, comma, label = row.partition(',')
  is_method = name.islower() and group != 'baselines'
  return f'`{name}`{comma}{label}' if is_method else row


def write(
  directory: pathlib.Path,
  entries: Sequence[Entry],
  names: Sequence[tuple[str, str]],
) -> None:
  """Writes speed.md, speed.csv and speed.png.

  Other entries of an earlier call are unchanged, because each ratio is to SGD
  in the same rounds.

  Args:
    directory: the output directory, created if it is missing.
    entries: the new entries.
    names: names of all rows, in the order of the table; others come last.
  """
  directory.mkdir(parents=True, exist_ok=True)

  def place(entry: Entry) -> tuple[str, str, str]:
    return entry.problem, entry.group, entry.row

  former = read(directory / 'speed.csv')
  by_place = {place(entry): entry for entry in (*former, *entries)}
  networks = list(dict.fromkeys(problem for problem, _, _ in by_place))
  order = {key: number for number, key in enumerate(names)}
  entries = sorted(
    by_place.values(),
    key=lambda e: (
      networks.index(e.problem),
      order.get((e.group, e.row), len(order)),
    ),
  )
  text = f'# Time of a step relative to SGD\n\n{heading()}\n\n'
  text += f'## By kind of method\n\n{overview(entries, names, networks)}\n'
  text += f'## By network\n\n{markdown(entries)}'
  (directory / 'speed.md').write_text(text, encoding='utf-8')
  with (directory / 'speed.csv').open('w', newline='') as file:
    fields = [field.name for field in dataclasses.fields(Entry)]
    writer = csv.DictWriter(file, fields)
    writer.writeheader()
    writer.writerows(dataclasses.asdict(entry) for entry in entries)
  from benchmarks import speed_picture

  speed_picture.draw(directory / 'speed.png', entries)


def read(path: pathlib.Path) -> list[Entry]:
  """Returns the entries of a CSV file, none without a file."""
  if not path.exists():
    return []
  texts = ('problem', 'row', 'group', 'counterpart')

  def value(name: str, text: str) -> Any:
    if name in texts:
      return text or None
    return float(text) if text else None

  with path.open(newline='') as file:
    return [
      Entry(**{name: value(name, text) for name, text in row.items()})
      for row in csv.DictReader(file)
    ]
