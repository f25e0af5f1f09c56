"""Work and bytes per device for 1, 2, 4 and 8 devices.

`python -m benchmarks.weak_scaling` compiles the trainer's step for fake devices
on the cores of this machine, with the same number of examples per device. Work
and bytes per device should be constant. Time is not measured, because fake
devices say nothing about it.
"""

import dataclasses
import datetime as dt
import os
import pathlib
from typing import Any

import tyro

from benchmarks import dataclass_rows

RESULTS = pathlib.Path(__file__).parent / 'results'
ROWS = (
  'sgd',
  'sam',
  'ae_sam',
  'friendly_sam',
  'shard_map/sgd',
  'shard_map/sam',
  'shard_map/sam, local ascent',
)


@dataclasses.dataclass(frozen=True)
class Options:
  """Options of the command."""

  devices: tuple[int, ...] = (1, 2, 4, 8)
  """Numbers of devices."""
  rows: tuple[str, ...] = ROWS
  """Rows, named as in `benchmarks.pod`."""
  model: str = 'cnn'
  """The trainer's model: cnn, with batch norm, or mlp."""
  examples: int = 64
  """Examples per device."""
  output: pathlib.Path = RESULTS
  """Directory of weak_scaling.csv and weak_scaling.md."""


@dataclasses.dataclass(frozen=True)
class Entry:
  """One compiled step; all numbers are per device.

  Attributes:
    row: name of the row, as in `benchmarks.pod`.
    devices: number of devices.
    flops: operations.
    collectives: number of collectives.
    collective_bytes: bytes of their results.
  """

  row: str
  devices: int
  flops: float
  collectives: int
  collective_bytes: int


def main(options: Options) -> None:
  """Prints the table, then writes it."""
  os.environ['JAX_PLATFORMS'] = 'cpu'
  os.environ['XLA_FLAGS'] = (
    f'{os.environ.get("XLA_FLAGS", "")} '
    f'--xla_force_host_platform_device_count={max(options.devices)}'
  )
  entries = [
    measure(row, count, options.model, options.examples)
    for row in options.rows
    for count in options.devices
  ]
  text = page(entries, options.model, options.examples)
  print(text)
  path = options.output / 'weak_scaling.csv'
  dataclass_rows.write(path, Entry, entries)
  path.with_suffix('.md').write_text(text, encoding='utf-8')
  print(f'Table: {options.output}/weak_scaling.md, .csv')


def measure(row: str, devices: int, model: Any, examples: int) -> Entry:
  """Compiles one step of the trainer on digits."""
  import jax
  import numpy as np

  from benchmarks import pod_programs, pod_steps
  from optax_sam.train.config import configs
  from optax_sam.train.loop import task

  name, local = pod_steps.parse_row(row)
  config = configs.TrainConfig(
    model=model, method=name, batch_size=devices * examples
  )
  mesh = jax.sharding.Mesh(
    np.asarray(jax.devices()[:devices]), (pod_steps.AXIS,)
  )
  program = pod_steps.of_task(
    task.build(config), config, mesh, sync_ascent=local
  )
  report = pod_programs.report(program.lower(mesh).compile())
  total = report.structure.total
  return Entry(row, devices, report.flops, total.count, total.bytes)


def page(entries: list[Entry], model: str, examples: int) -> str:
  """Returns the page with heading and table."""
  from benchmarks import pod_table

  counts = sorted({e.devices for e in entries})
  known = {(e.row, e.devices): e for e in entries}
  lines = [
    _HEADING.format(
      model=model,
      examples=examples,
      date=dt.datetime.now(tz=dt.UTC).date().isoformat(),
      versions=pod_table.versions(),
    ),
    f'| step | per device | {" | ".join(map(str, counts))} |',
    f'|---|---|{"---|" * len(counts)}',
  ]
  for row in dict.fromkeys(e.row for e in entries):
    found = [known.get((row, count)) for count in counts]
    for title, show in _COLUMNS.items():
      cells = ' | '.join('—' if e is None else show(e) for e in found)
      lines.append(f'| {row} | {title} | {cells} |')
  return '\n'.join(lines) + '\n'


_COLUMNS: dict[str, Any] = {
  'Mflop': lambda e: f'{e.flops / 1e6:.2f}',
  'collectives': lambda e: str(e.collectives),
  'kB in them': lambda e: f'{e.collective_bytes / 1e3:.1f}',
}

_HEADING = """\
# Weak scaling of the structure

Steps of the trainer's model `{model}` on digits, {examples} examples per
device, on fake devices of one processor; compiled, not timed.
{date}, {versions}.
"""


if __name__ == '__main__':
  main(tyro.cli(Options))
