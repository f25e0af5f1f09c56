"""Targets of the speed table, and what was measured."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from benchmarks.speed_table import Entry, title


def _operations(entry: Entry) -> float | None:
  return entry.flops


def _time(entry: Entry) -> float:
  return entry.wall


@dataclasses.dataclass(frozen=True)
class Target:
  """A limit of one number of one row.

  Attributes:
    row: name of the row.
    measure: its number, None if unknown.
    name: what the number is.
    limit: the largest number that meets the target.
    conv_limit: the limit on the conv networks, if it differs.
    relative_to: a row by whose number it is divided.
  """

  row: str
  measure: Callable[[Entry], float | None]
  name: str
  limit: float
  conv_limit: float | None = None
  relative_to: str | None = None

  def cell(self, network: str, rows: Mapping[str, Entry]) -> str:
    """Returns the number on one network, bold if it misses the target."""
    names = [self.row, self.relative_to] if self.relative_to else [self.row]
    numbers = [self.measure(rows[name]) for name in names if name in rows]
    if len(numbers) < len(names) or None in numbers:
      return ''
    limit = self.limit
    if network.startswith('conv') and self.conv_limit is not None:
      limit = self.conv_limit
    number = numbers[0] / numbers[1] if self.relative_to else numbers[0]
    shown = f'{number:.2f}'
    return f'**{shown}**' if float(shown) > limit else shown

  def line(self, networks: Mapping[str, Mapping[str, Entry]]) -> str:
    """Returns the line of the table."""
    limit = f'{self.limit:.2f}'
    if self.conv_limit is not None:
      limit += f' (conv: {self.conv_limit:.2f})'
    cells = [self.cell(name, rows) for name, rows in networks.items()]
    what = f'{title(self.row)}: {self.name}'
    return f'| {" | ".join((what, limit, *cells))} |'


def _skips(method: str) -> tuple[Target, ...]:
  return (
    Target(f'{method}, skipped', _time, 'time', 1.03, 1.08),
    Target(f'{method}, full', _time, 'time', 2.08),
  )


def _over(other: str, limit: float) -> Target:
  name = f'time relative to {other}'
  return Target('sam', _time, name, limit, relative_to=other)


TARGETS = (
  Target('sam', _operations, 'operations', 2.01),
  _over('SAM by hand', 1.03),
  _over('optax.contrib.sam', 1.02),
  Target('sam', lambda e: e.copies, 'more copies of the parameters', 1.1),
  *_skips('ss_sam'),
  *_skips('ae_sam'),
  *_skips('look_sam'),
  Target('ae_sam', _time, 'time', 1.6),
  Target('ae_look_sam', _time, 'time', 1.3),
  Target('k_sam, a third each', _operations, 'operations', 1.0),
  Target('k_sam, a third each', _time, 'time', 1.0),
  Target(
    'subset_sam, loss and statistics unused', _operations, 'operations', 1.3
  ),
  Target('entropy_sgd', _operations, 'operations', 1.02),
  Target('anti_pgd', _operations, 'operations', 1.02),
)


def _with_pytorch(row: str, theirs: str) -> Target:
  name = f'time per gradient relative to {theirs} in PyTorch'
  return Target(row, lambda e: e.overhead, name, 1.0, relative_to=theirs)


def table(entries: Sequence[Entry]) -> str:
  """Returns all targets with their numbers, one column a network."""
  networks: dict[str, dict[str, Entry]] = {}
  for entry in entries:
    networks.setdefault(entry.problem, {})[entry.row] = entry
  with_pytorch = {
    entry.row: _with_pytorch(entry.row, entry.counterpart)
    for entry in entries
    if entry.counterpart
  }
  lines = [
    f'| number | target | {" | ".join(networks)} |',
    f'|---|---|{"---|" * len(networks)}',
    *(target.line(networks) for target in TARGETS),
    *(target.line(networks) for target in with_pytorch.values()),
  ]
  return '\n'.join(lines)
