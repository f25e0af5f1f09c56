"""The speed table as Markdown, CSV and a plot."""

import csv
import dataclasses
import datetime as dt
import itertools
import math
import pathlib
import platform
from collections.abc import Sequence
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
  def overhead(self) -> float:
    """Time of a step over the expected time of its gradients."""
    if self.gradients is not None:
      return self.wall / self.gradients
    return self.wall / (1 + (self.fraction or 0))


def heading() -> str:
  """Returns date, hardware and versions."""
  found = machine.describe()
  return (
    f'{dt.datetime.now(dt.UTC):%Y-%m-%d}, {found["cores"]} cores of an '
    f'{found["processor"]}, {found["system"]}, '
    f'Python {platform.python_version()}, JAX {jax.__version__}'
  )


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


def overview(entries: Sequence[Entry], names: Sequence[tuple[str, str]]) -> str:
  """Returns a table of the time of a step relative to SGD, by network.

  Args:
    entries: the rows of all networks; a network may lack some.
    names: group and name of the rows in their order; others come last.
  """
  problems = list(dict.fromkeys(entry.problem for entry in entries))
  measured = dict.fromkeys((entry.group, entry.row) for entry in entries)
  ordered = [key for key in names if key in measured]
  rows = dict.fromkeys([*ordered, *measured])
  found = {(e.group, e.row, e.problem): e for e in entries}
  lines = [
    f'| step | {" | ".join(problems)} |',
    f'|---|{"---|" * len(problems)}',
  ]
  former = None
  for group, row in rows:
    if group != former:
      former = group
      lines.append(f'| **{group}** |{"|" * len(problems)}')
    cells = [
      f'{found[group, row, problem].wall:.2f}'
      if (group, row, problem) in found
      else ''
      for problem in problems
    ]
    lines.append(f'| {row} | {" | ".join(cells)} |')
  return '\n'.join(lines) + '\n'


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

  former = _read(directory / 'speed.csv')
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
  text += f'{overview(entries, names)}\n## By network\n\n{markdown(entries)}'
  (directory / 'speed.md').write_text(text, encoding='utf-8')
  with (directory / 'speed.csv').open('w', newline='') as file:
    fields = [field.name for field in dataclasses.fields(Entry)]
    writer = csv.DictWriter(file, fields)
    writer.writeheader()
    writer.writerows(dataclasses.asdict(entry) for entry in entries)
  _plot(directory / 'speed.png', entries)


def _read(path: pathlib.Path) -> list[Entry]:
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


def _plot(path: pathlib.Path, entries: Sequence[Entry]) -> None:
  from matplotlib import figure

  groups = [
    (problem, list(found))
    for problem, found in itertools.groupby(entries, lambda e: e.problem)
  ]
  columns = min(3, len(groups))
  lines = math.ceil(len(groups) / columns)
  height = 0.2 * max(len(found) for _, found in groups) + 1
  drawing = figure.Figure(
    figsize=(5 * columns, height * lines), layout='constrained'
  )
  places = drawing.subplots(lines, columns, squeeze=False).flatten()
  for axes in places:
    axes.set_axis_off()
  for axes, (problem, found) in zip(places, groups, strict=False):
    axes.set_axis_on()
    positions = range(len(found))
    errors = (
      [entry.wall - entry.low for entry in found],
      [entry.high - entry.wall for entry in found],
    )
    colors = {
      name: f'C{number}'
      for number, name in enumerate(dict.fromkeys(e.group for e in found))
    }
    axes.barh(
      positions,
      [entry.wall for entry in found],
      xerr=errors,
      color=[colors[entry.group] for entry in found],
    )
    axes.set_yticks(positions, [entry.row for entry in found])
    axes.invert_yaxis()
    axes.set_title(problem)
    axes.set_xlabel('time of a step relative to SGD')
    for limit in (1, 2):
      axes.axvline(limit, color='black', linewidth=0.8, linestyle=':')
  drawing.savefig(path, dpi=100)
