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

import msgspec

_PACKAGES = ('jax', 'jaxlib', 'libtpu', 'flax', 'optax', 'optax-sam')


@dataclasses.dataclass(frozen=True)
class Entry:
  """One compiled step; all numbers are per device.

  Attributes:
    topology: devices and slices.
    chips: number of devices.
    model: name of the model.
    row: name of the step, see `steps.Row`.
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


def entry(key: Sequence[str], chips: int, report: Any) -> Entry:
  """Returns the row of a compiled step.

  Args:
    key: topology, model, row and optimization.
    chips: number of devices.
    report: result of `programs.report`.
  """
  topology, model, row, optimization = key
  found = report.structure
  kinds = (
    f'{kind} {traffic.count} ({traffic.bytes / 1e6:.1f} MB)'
    for kind, traffic in found.collectives.items()
  )
  return Entry(
    topology=topology,
    chips=chips,
    model=model,
    row=row,
    optimization=optimization,
    flops=report.flops,
    peak_bytes=report.peak_bytes,
    collectives=found.total.count,
    collective_bytes=found.total.bytes,
    kinds='; '.join(kinds),
    collectives_inside=found.inside.count,
    collective_bytes_inside=found.inside.bytes,
    conditionals=found.conditionals,
    products=found.products,
    products_inside=found.products_inside,
    versions=versions(),
    date=dt.datetime.now(tz=dt.UTC).date().isoformat(),
  )


def versions() -> str:
  """Returns the versions on which the numbers depend."""
  return ', '.join(f'{x} {importlib.metadata.version(x)}' for x in _PACKAGES)


def read(path: pathlib.Path) -> list[Entry]:
  """Returns the rows of an earlier run, none without a file."""
  if not path.exists():
    return []
  with path.open(encoding='utf-8', newline='') as file:
    rows = list(csv.DictReader(file))
  return msgspec.convert(rows, list[Entry], strict=False)


def write(path: pathlib.Path, rows: Iterable[Any]) -> None:
  """Writes dataclasses of one class as CSV."""
  found = [dataclasses.asdict(row) for row in rows]
  with path.open('w', encoding='utf-8', newline='') as file:
    writer = csv.DictWriter(file, list(found[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(found)


def page(entries: Sequence[Entry]) -> str:
  """Returns one table for each model on each topology, with a legend."""
  stated = sorted({e.versions for e in entries})
  parts = [_HEADING, '\n'.join(f'- {text}' for text in stated)]
  group = lambda e: (e.topology, e.chips, e.model)
  for (topology, chips, model), found in itertools.groupby(entries, group):
    rows = list(found)
    known = {(e.row, e.optimization): e for e in rows}
    lines = [_line(row, known) for row in dict.fromkeys(e.row for e in rows)]
    parts.append(f'### {model} on {topology}, {chips} chips')
    parts.append('\n'.join([_COLUMNS, '|---' * 10 + '|', *lines]))
  return '\n\n'.join(parts) + '\n'


def _line(row: str, known: dict[tuple[str, str], Entry]) -> str:
  """Formats structure at any available level, and memory at both."""
  full, fast = known.get((row, 'default')), known.get((row, 'O0'))
  e = fast or full
  assert e is not None  # a row has one of the two
  # The base optimizer in the same kind of step.
  reference = re.sub(r'[^/]+$', 'sgd', row)

  def ratio(of: Entry, name: str) -> str:
    first = known.get((reference, of.optimization))
    value = getattr(first, name, 0)
    return f' ({getattr(of, name) / value:.3f})' if value else ''

  def memory(of: Entry | None) -> str:
    if of is None:
      return '—'
    return f'{of.peak_bytes / 2**20:.0f}{ratio(of, "peak_bytes")}'

  inside = f'{e.collectives_inside}, {e.collective_bytes_inside / 1e6:.1f} MB'
  cells = (
    row,
    f'{e.flops / 1e9:.1f} G{ratio(e, "flops")}',
    memory(full),
    memory(fast),
    e.kinds.replace(' (', ', ').replace(')', '') or '0',
    f'{e.collective_bytes / 1e6:.1f}{ratio(e, "collective_bytes")}',
    inside if e.conditionals else '—',
    f'{e.products}{ratio(e, "products")}',
    str(e.products_inside) if e.conditionals else '—',
    e.date,
  )
  return f'| {" | ".join(cells)} |'


_COLUMNS = (
  '| step | flops | peak MiB | peak MiB, O0 | collectives | MB | of these in '
  'conditionals | products | of these in conditionals | compiled |'
)

_HEADING = """\
# Steps compiled for TPU pods

The steps were compiled, not run, so there are no times. All numbers are per
chip, for a global batch of 4096 images of 224 x 224. Numbers in brackets are
relative to the base optimizer alone (`sgd`; for vit_s16 it is AdamW) in the
same kind of step, with the state donated. Flops of a conditional are those of
its costliest branch. Peak memory is given for the default optimization, where
compiled, and for O0; the other columns are the same for both. Collectives are
listed by kind, with the bytes of their results. A `send` goes to another slice,
and operations in a loop count once. Products are convolutions and matrix
products. Rows with `fsdp/` are the trainer's step on the mesh
`data=16,fsdp=16`, which shards parameters and states. Rows with `shard_map/`
are handwritten per-device steps from parts of the trainer, with local batch
norm.

Since 2026-11-29 a norm whose squares over- or underflow is computed again, in a
conditional without products. Rows of SAM compiled before have none."""
