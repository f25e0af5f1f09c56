"""The tables of compiled steps, as extensible CSV and as Markdown."""

import csv
import dataclasses
import datetime as dt
import importlib.metadata
import itertools
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks import dataclass_rows, hlo

REFERENCE = 'sgd'
_PACKAGES = ('jax', 'jaxlib', 'libtpu', 'flax', 'optax', 'optax-sam')
_MEBIBYTE = 2**20
_DEFAULT = 'default'


@dataclasses.dataclass(frozen=True)
class Entry:
  """One compiled step; all numbers are per device.

  Attributes:
    topology: devices and slices.
    chips: number of devices.
    model: name of the model.
    row: base optimizer or method, possibly with the prefix `shard_map/`.
    optimization: optimization level, `default` or `O0`.
    flops: operations; of a conditional those of its costliest branch.
    peak_bytes: largest use of memory at any time.
    collectives: number of collectives.
    collective_bytes: bytes of their results.
    kinds: number and bytes of each kind.
    collectives_inside: number of collectives inside conditionals.
    collective_bytes_inside: bytes of these.
    conditionals: number of conditionals after compilation.
    products: number of convolutions and matrix products.
    products_inside: number of these inside conditionals.
    loops: number of loops with products or collectives, which count once.
    versions: versions of the packages.
    date: date of the compilation.
  """

  topology: str
  chips: int
  model: str
  row: str
  optimization: str
  flops: float
  peak_bytes: int
  collectives: int
  collective_bytes: int
  kinds: str
  collectives_inside: int
  collective_bytes_inside: int
  conditionals: int
  products: int
  products_inside: int
  loops: int
  versions: str
  date: str

  @property
  def sent_bytes(self) -> float:
    """Bytes that a chip sends to another slice."""
    found = re.search(r'send \d+ \(([\d.]+) MB\)', self.kinds)
    return float(found[1]) * 1e6 if found else 0.0

  @property
  def key(self) -> tuple[str, ...]:
    """The key of a row."""
    return (self.topology, self.model, self.row, self.optimization)


def entry(
  key: Sequence[str], chips: int, report: Any, date: dt.date | None = None
) -> Entry:
  """Returns the row of a compiled step.

  Args:
    key: topology, model, row and optimization.
    chips: number of devices.
    report: result of `pod_programs.report`.
    date: today if None.
  """
  found: hlo.Structure = report.structure
  total = found.total
  topology, model, row, optimization = key
  return Entry(
    topology=topology,
    chips=chips,
    model=model,
    row=row,
    optimization=optimization,
    flops=report.flops,
    peak_bytes=report.peak_bytes,
    collectives=total.count,
    collective_bytes=total.bytes,
    kinds='; '.join(
      f'{kind} {traffic.count} ({traffic.bytes / 1e6:.1f} MB)'
      for kind, traffic in found.collectives.items()
    ),
    collectives_inside=found.inside.count,
    collective_bytes_inside=found.inside.bytes,
    conditionals=found.conditionals,
    products=found.products,
    products_inside=found.products_inside,
    loops=found.loops,
    versions=versions(),
    date=(date or dt.datetime.now(tz=dt.UTC).date()).isoformat(),
  )


def versions() -> str:
  """Returns the installed versions on which the numbers depend."""
  found = []
  for package in _PACKAGES:
    try:
      found.append(f'{package} {importlib.metadata.version(package)}')
    except importlib.metadata.PackageNotFoundError:
      continue
  return ', '.join(found)


def read(path: pathlib.Path) -> list[Entry]:
  """Returns the rows of an earlier run, none without a file."""
  if not path.exists():
    return []
  kinds = {field.name: field.type for field in dataclasses.fields(Entry)}
  with path.open(encoding='utf-8', newline='') as file:
    return [
      Entry(**{name: _typed(kinds[name], x) for name, x in row.items()})
      for row in csv.DictReader(file)
    ]


def _typed(kind: Any, text: str) -> Any:
  return {int: int, float: float, str: str}[kind](text)


def write(path: pathlib.Path, entries: Iterable[Entry]) -> None:
  """Writes the rows atomically."""
  dataclass_rows.write(path, Entry, entries)


def markdown(entries: Sequence[Entry]) -> str:
  """Returns one table for each model on each topology."""
  group = lambda e: (e.topology, e.chips, e.model)
  parts = []
  for (topology, chips, model), found in itertools.groupby(entries, group):
    rows = list(found)
    parts += [f'### {model} on {topology}, {chips} chips', _table(rows)]
  return '\n\n'.join(parts) + '\n'


def _table(entries: list[Entry]) -> str:
  known = {e.key: e for e in entries}
  lines = [
    _COLUMNS,
    '|---|---|---|---|---|---|---|---|---|---|',
  ]
  for row in dict.fromkeys(e.row for e in entries):
    fast, full = (
      known.get((*entries[0].key[:2], row, level)) for level in ('O0', _DEFAULT)
    )
    lines.append(_line(fast, full, known))
  return '\n'.join(lines)


def _line(
  fast: Entry | None, full: Entry | None, known: dict[tuple[str, ...], Entry]
) -> str:
  """Formats structure at any available level, and memory at both."""
  e = fast or full
  assert e is not None  # a row has one of the two
  first = reference(e, known)
  inside = '—'
  if e.conditionals:
    inside = f'{e.collectives_inside}, {e.collective_bytes_inside / 1e6:.1f} MB'
  cells = (
    e.row,
    f'{e.flops / 1e9:.1f} G' + _ratio(e.flops, first, 'flops'),
    _memory(full, known),
    _memory(fast, known),
    e.kinds.replace(' (', ', ').replace(')', '') or '0',
    f'{e.collective_bytes / 1e6:.1f}'
    + _ratio(e.collective_bytes, first, 'collective_bytes'),
    inside,
    str(e.conditionals),
    f'{e.products}' + _ratio(e.products, first, 'products'),
    str(e.products_inside) if e.conditionals else '—',
  )
  return f'| {" | ".join(cells)} |'


def _memory(e: Entry | None, known: dict[tuple[str, ...], Entry]) -> str:
  if e is None:
    return '—'
  ratio = _ratio(e.peak_bytes, reference(e, known), 'peak_bytes')
  return f'{e.peak_bytes / _MEBIBYTE:.0f}{ratio}'


def reference(of: Entry, known: dict[tuple[str, ...], Entry]) -> Entry | None:
  """Returns SGD in the same kind of step, None if it is missing."""
  manual, slash, _ = of.row.rpartition('/')
  key = (of.topology, of.model, f'{manual}{slash}{REFERENCE}', of.optimization)
  return known.get(key)


def _ratio(value: float, first: Entry | None, name: str) -> str:
  if first is None or not getattr(first, name):
    return ''
  return f' ({value / getattr(first, name):.3f})'


def page(entries: Sequence[Entry]) -> str:
  """Returns all tables with a legend and the versions."""
  stated = sorted({(e.date, e.versions) for e in entries})
  lines = [f'- {date}: {versions}' for date, versions in stated]
  return '\n\n'.join([_HEADING, '\n'.join(lines), markdown(entries)])


_COLUMNS = (
  '| step | flops | peak MiB | peak MiB, O0 | collectives | MB | of these in '
  'conditionals | conditionals | products | of these in conditionals |'
)

_HEADING = """\
# Steps compiled for TPU pods

The steps were compiled, not run, so there are no times. All numbers are per
chip, for a global batch of 4096 images of 224 x 224. Numbers in brackets are
relative to the base optimizer alone (`sgd`; for vit_s16 it is AdamW) in the
same kind of step. Flops of a conditional are those of its costliest branch.
Peak memory is given for the default optimization, where compiled, and for O0;
the other columns are the same for both. Collectives are listed by kind, with
the bytes of their results. A `send` goes to another slice, and operations in a
loop count once. Products are convolutions and matrix products. Rows with
`shard_map/` are handwritten per-device steps from parts of the trainer, with
local batch norm."""
