"""Time of a step on up to 2048 chips: `python -m benchmarks.pod_estimate`.

Computed from operations and collectives in pod.csv, published speeds of chips
and links, and assumptions that are listed with the table. No chip was timed.
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
  """Assumptions, listed with the table."""

  utilization: float = 0.4
  """Fraction of the peak that convolutions and products reach."""
  hop_seconds: float = 1 * _MICROSECOND
  """Time from one chip to its neighbour."""
  network_seconds: float = 50 * _MICROSECOND
  """Time of one collective between slices, for any size."""
  ascent_fraction: float = 0.5
  """Fraction of AE-SAM's steps that take an ascent step."""


@dataclasses.dataclass(frozen=True)
class Work:
  """The mean work of a step per chip.

  Attributes:
    flops: operations.
    collectives: number of all-reduces.
    bytes: bytes of these.
    sent_bytes: bytes sent to other slices; None if the step was compiled only
      for one slice.
  """

  flops: float
  collectives: float
  bytes: float
  sent_bytes: float | None = None


@dataclasses.dataclass(frozen=True)
class Estimate:
  """One cell of the table.

  Attributes:
    chip: name of the chip.
    model: name of the model.
    step: base optimizer or method.
    chips: number of chips.
    seconds: time of a step.
    efficiency: time on one chip over this time, with equal images per chip.
    relative: time relative to the base optimizer on as many chips.
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
  ascent_fraction: float,
) -> Iterator[tuple[str, Work]]:
  """Returns the work of all steps for which the rows suffice.

  Args:
    entries: entries of one model on one slice, by row.
    of_slices: entries of the same model on two slices.
    ascent_fraction: fraction of AE-SAM's steps that take an ascent step.
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
    left = 1 - ascent_fraction
    yield (
      f'AE-SAM, {ascent_fraction:.0%} ascent steps',
      Work(
        skipped.flops + ascent_fraction * (e.flops - skipped.flops),
        e.collectives - left * e.collectives_inside,
        e.collective_bytes - left * e.collective_bytes_inside,
        # Its ascent steps are those of SAM.
        left * sent['sgd'] + ascent_fraction * sent['sam']
        if {'sgd', 'sam'} <= sent.keys()
        else None,
      ),
    )


def seconds(chip: Chip, chips: int, work: Work, assumed: Assumptions) -> float:
  """Returns the time of a step, communication after computation.

  All-reduces in a slice send every byte around the ring twice, except for the
  own part.

  Raises:
    ValueError: if several slices are needed and their traffic is unknown.
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
    # Compiled for two slices, which send to each other.
    time += work.sent_bytes * 2 * (slices - 1) / slices / chip.network_bytes
    time += work.collectives * assumed.network_seconds
  return time


def estimates(
  entries: list[pod_table.Entry], assumed: Assumptions
) -> list[Estimate]:
  """Returns the estimates of all chips and available models."""
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
    works = dict(steps(rows, of_slices, assumed.ascent_fraction))
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
  """Returns the page: tables, published numbers and assumptions."""
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
    network = 'none published, and none needed for one slice'
    if chip.network_bytes is not None:
      network = f'{chip.network_bytes / 1e9:.3f} GB/s per chip between slices'
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
- Work and bytes per chip are those of {source}, with 16 images per chip, for
  any number of chips: the batch grows with their number.
- Computation reaches {utilization:.0%} of the peak for all steps and both
  models: assumed, not measured. This includes the effect of memory bandwidth.
- Computation and communication do not overlap. All links of a chip are in use,
  and every axis is a ring, which is not true for smaller slices of v5e.
- A collective in a slice takes {hop:.1f} microseconds per hop in addition to
  the time of its bytes; the hops are the sum of the sides of the torus. A
  collective between slices takes {network:.0f} microseconds more. Both are
  assumptions.
- Between slices a chip sends as much as the step compiled for two slices sends
  (the column `send`), and with s slices 2 (s - 1) / s times that, all chips
  concurrently. It is unknown whether the runtime merges or distributes these
  transfers. Steps that were compiled only for one slice have no estimate beyond
  it.
- Input, evaluation and checkpoints take no time; all chips are equally fast."""

_HEADING = """\
# Time of a step, estimated

Computed, not measured. Each cell has the time of a step, the efficiency (time
on one chip over this time), and the time relative to the base optimizer under
`jit` on the same number of chips."""


@dataclasses.dataclass(frozen=True)
class Options:
  """Options of the command."""

  assumed: Assumptions = dataclasses.field(default_factory=Assumptions)
  """Assumptions."""
  output: pathlib.Path = RESULTS
  """Directory of the input, pod.csv, and of pod_estimate.md and .csv."""


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
