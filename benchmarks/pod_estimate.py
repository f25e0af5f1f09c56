"""Time of a step on up to 2048 chips: `python -m benchmarks.pod_estimate`.

Computed from the operations and collectives of pod.csv, published speeds of
chips and links, and assumptions that are listed beside the table. No chip was
timed.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping

import tyro

from benchmarks import dataclass_rows, pod_table
from benchmarks.pod_chips import V4, V5E, Chip

RESULTS = pathlib.Path(__file__).parent / 'results'
COUNTS = (1, 16, 64, 256, 512, 1024, 2048)
SOURCE = 'v5e:16x16'
SLICES = 'v5e:16x16*2'

_MICROSECOND = 1e-6


@dataclasses.dataclass(frozen=True)
class Assumptions:
  """What is not published, and stands beside the table."""

  utilization: float = 0.4
  """Share of the peak that convolutions and products reach."""
  hop_seconds: float = 1 * _MICROSECOND
  """Time from one chip to its neighbour."""
  network_seconds: float = 50 * _MICROSECOND
  """Time of one collective between slices, whatever its size."""
  share: float = 0.5
  """Share of the steps of AE-SAM that ascend."""


@dataclasses.dataclass(frozen=True)
class Work:
  """What a step takes of each chip, on average.

  Attributes:
    flops: operations.
    collectives: how many all-reduces.
    bytes: of these.
    sent_bytes: what it sends to other slices; None if the step was compiled
      for one slice only.
  """

  flops: float
  collectives: float
  bytes: float
  sent_bytes: float | None = None


@dataclasses.dataclass(frozen=True)
class Estimate:
  """One cell of the table.

  Attributes:
    chip: what kind.
    model: what is trained.
    step: base optimizer or method.
    chips: how many.
    seconds: of a step.
    efficiency: time on one chip over this time, at as many images a chip.
    relative: to the base optimizer on as many chips.
  """

  chip: str
  model: str
  step: str
  chips: int
  seconds: float
  efficiency: float
  relative: float


def steps(
  entries: Mapping[str, pod_table.Entry],
  of_slices: Mapping[str, pod_table.Entry],
  share: float,
) -> Iterator[tuple[str, Work]]:
  """Returns the work of every step that can be computed from the rows.

  Args:
    entries: of one model on one slice, by row.
    of_slices: the same on two slices.
    share: of the steps of AE-SAM that ascend.
  """
  sent = {row: float(e.sent_bytes) for row, e in of_slices.items()}
  names = {
    'sgd': 'base optimizer',
    'sam': 'SAM',
    'shard_map/sgd': 'base optimizer, `shard_map`',
    'shard_map/sam': 'SAM, `shard_map`',
    'shard_map/sam, local ascent': 'SAM, `shard_map`, local ascent',
  }
  for row, name in names.items():
    if row in entries:
      e = entries[row]
      yield (
        name,
        Work(e.flops, e.collectives, e.collective_bytes, sent.get(row)),
      )
  if {'sgd', 'ae_sam'} <= entries.keys():
    skipped, e = entries['sgd'], entries['ae_sam']
    left = 1 - share
    yield (
      f'AE-SAM, ascending at {share:.0%}',
      Work(
        skipped.flops + share * (e.flops - skipped.flops),
        e.collectives - left * e.collectives_inside,
        e.collective_bytes - left * e.collective_bytes_inside,
        # It ascends as SAM does.
        left * sent['sgd'] + share * sent['sam']
        if {'sgd', 'sam'} <= sent.keys()
        else None,
      ),
    )


def seconds(chip: Chip, chips: int, work: Work, assumed: Assumptions) -> float:
  """Returns the time of a step, communication after computation.

  All-reduces in a slice send every byte twice around, but for the own part.

  Raises:
    ValueError: if slices have to be joined and what that takes isn't known.
  """
  time = work.flops / (chip.flops * assumed.utilization)
  inner = min(chips, chip.slice_chips)
  slices = chips // inner
  if inner > 1:
    time += 2 * work.bytes * (inner - 1) / inner / chip.link_bytes
    time += work.collectives * assumed.hop_seconds * sum(chip.shape(inner))
  if slices > 1:
    if chip.network_bytes is None or work.sent_bytes is None:
      msg = f'chips must be at most {inner} of {chip.name}, not {chips}'
      raise ValueError(msg)
    # Compiled for two slices, of which each sends to the other.
    time += work.sent_bytes * 2 * (slices - 1) / slices / chip.network_bytes
    time += work.collectives * assumed.network_seconds
  return time


def estimates(
  entries: list[pod_table.Entry], assumed: Assumptions
) -> list[Estimate]:
  """Returns the whole table, of both chips and all models that are there."""
  found = []
  for model in dict.fromkeys(e.model for e in entries):
    rows, of_slices = (
      {
        e.row: e
        for e in entries
        if (e.topology, e.model, e.optimization) == (topology, model, 'O0')
      }
      for topology in (SOURCE, SLICES)
    )
    works = dict(steps(rows, of_slices, assumed.share))
    for chip in (V5E, V4):
      for name, work in works.items():
        first = seconds(chip, 1, work, assumed)
        for chips in COUNTS:
          if chips > chip.slice_chips and work.sent_bytes is None:
            continue
          time = seconds(chip, chips, work, assumed)
          base = seconds(chip, chips, works['base optimizer'], assumed)
          found.append(
            Estimate(
              chip.name, model, name, chips, time, first / time, time / base
            )
          )
  return found


def page(found: list[Estimate], assumed: Assumptions, source: str) -> str:
  """Returns the tables with their numbers and assumptions."""
  parts = [_HEADING, _numbers(assumed, source)]
  for chip, model in dict.fromkeys((e.chip, e.model) for e in found):
    rows = [e for e in found if (e.chip, e.model) == (chip, model)]
    parts += [f'### {model} on {chip}, estimated', _table(rows)]
  return '\n\n'.join(parts) + '\n'


def _table(found: list[Estimate]) -> str:
  counts = sorted({e.chips for e in found})
  heads = [f'{count} chips' if count > 1 else '1 chip' for count in counts]
  lines = [
    f'| step | {" | ".join(heads)} |',
    f'|---|{"---|" * len(counts)}',
  ]
  for name in dict.fromkeys(e.step for e in found):
    times = {e.chips: e for e in found if e.step == name}
    cells = [_cell(times.get(count)) for count in counts]
    lines.append(f'| {name} | {" | ".join(cells)} |')
  return '\n'.join(lines)


def _cell(e: Estimate | None) -> str:
  if e is None:
    return '—'
  return f'{1e3 * e.seconds:.2f} ms, {e.efficiency:.0%}, {e.relative:.2f}'


def _numbers(assumed: Assumptions, source: str) -> str:
  lines = []
  for chip in (V5E, V4):
    network = 'none published there, and none needed: one slice'
    if chip.network_bytes is not None:
      network = f'{chip.network_bytes / 1e9:.3f} GB/s a chip between slices'
    lines.append(
      f'- {chip.name}: {chip.flops / 1e12:.0f} Tflop/s in bfloat16, '
      f'{chip.link_bytes / 1e9:.0f} GB/s that a chip sends over its links in a '
      f'torus of {chip.axes} dimensions and at most {chip.slice_chips} chips; '
      f'{network} ({chip.source}).'
    )
  lines.append(
    _ASSUMPTIONS.format(
      source=source,
      utilization=assumed.utilization,
      hop=1e6 * assumed.hop_seconds,
      network=1e6 * assumed.network_seconds,
    )
  )
  return '\n'.join(lines)


_ASSUMPTIONS = """\
- Work and bytes of a chip are those of {source}, 16 images a chip, on any
  number of chips: the batch grows with them.
- Computation reaches {utilization:.0%} of the peak, the same for all steps and
  both models: assumed, not measured. What memory bandwidth costs is in it.
- Nothing overlaps: chips compute, then communicate. All links of a chip are in
  use, and every axis closes to a ring, which those of a smaller slice of v5e
  don't.
- A collective in a slice takes {hop:.1f} microseconds a hop beside its bytes,
  and as many hops as the sides of the torus have chips; one between slices
  takes {network:.0f} microseconds more: assumed, unconfirmed.
- Between slices a chip sends what the program compiled for two of them sends
  (the column of `send`), and with s slices 2 (s - 1) / s times that, all chips
  at a time; whether the runtime joins or shares out these transfers isn't
  known. Steps that were compiled for one slice only end there.
- Reading images, evaluation and checkpoints cost nothing; no chip is slower
  than another."""

_HEADING = """\
# Time of a step, estimated

Computed, not measured. Each cell: time of a step, efficiency (time on one chip
over it), and time relative to the base optimizer's in one program (`jit`) on as
many chips."""


@dataclasses.dataclass(frozen=True)
class Options:
  """What is assumed, and where the tables are."""

  assumed: Assumptions = dataclasses.field(default_factory=Assumptions)
  """What is not published."""
  output: pathlib.Path = RESULTS
  """Directory of pod.csv, which is read, and of pod_estimate.md and .csv."""


def main(options: Options) -> None:
  """Prints the tables, then writes them."""
  found = estimates(pod_table.read(options.output / 'pod.csv'), options.assumed)
  text = page(found, options.assumed, SOURCE)
  print(text)
  path = options.output / 'pod_estimate.csv'
  dataclass_rows.write(path, Estimate, found)
  path.with_suffix('.md').write_text(text, encoding='utf-8')
  print(f'Table: {options.output}/pod_estimate.md, .csv')


if __name__ == '__main__':
  main(tyro.cli(Options))
