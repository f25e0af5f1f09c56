"""Time of a step on up to 2048 chips: `python -m benchmarks.pod.estimate`.

Computed from operations and collectives in pod.csv, published speeds of chips
and links, and assumptions that are listed with the table. No chip was timed.
"""

import dataclasses
from collections.abc import Iterator, Mapping

from benchmarks.pod import tables
from benchmarks.pod.__main__ import RESULTS

COUNTS = (1, 16, 64, 256, 512, 1024, 2048)
SOURCE = 'v5e:16x16'
SLICES = 'v5e:16x16*2'
# Assumptions: the fraction of the peak that convolutions and products reach,
# the time from one chip to its neighbour, the time of one collective between
# slices, the fraction of AE-SAM's steps that take an ascent step.
UTILIZATION = 0.4
HOP_SECONDS = 1e-6
NETWORK_SECONDS = 50e-6
ASCENT_FRACTION = 0.5
_STEPS = {
  'sgd': 'base optimizer',
  'sam': 'SAM',
  'shard_map/sgd': 'base optimizer, `shard_map`',
  'shard_map/sam': 'SAM, `shard_map`',
  'shard_map/sam, local ascent': 'SAM, `shard_map`, local ascent',
}


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published speeds of one chip and of its links.

  Attributes:
    name: name of the chip.
    flops: peak operations per second in bfloat16.
    link_bytes: bytes per second that one chip sends to its neighbours, over all
      links.
    axes: dimensions of the torus.
    slice_chips: largest number of chips in a slice.
    network_bytes: bytes per second of one chip over the data-center network;
      None if unpublished.
    source: source of these numbers.
  """

  name: str
  flops: float
  link_bytes: float
  axes: int
  slice_chips: int
  network_bytes: float | None
  source: str

  def hops(self, chips: int) -> int:
    """Returns the sum of the sides of the most compact torus."""
    sides = [1] * self.axes
    while chips > 1:
      sides[sides.index(min(sides))] *= 2
      chips //= 2
    return sum(sides)


CHIPS = (
  Chip(
    name='v5e',
    flops=197e12,
    # 400 GB/s in both directions; 51.2 TB/s all-reduce bandwidth of a pod is
    # 200 per chip.
    link_bytes=200e9,
    axes=2,
    slice_chips=256,
    network_bytes=6.4e12 / 8 / 256,
    source='https://cloud.google.com/tpu/docs/v5e',
  ),
  Chip(
    name='v4',
    flops=275e12,
    link_bytes=1.1e15 / 4096,  # all-reduce bandwidth of a pod
    axes=3,
    slice_chips=4096,
    network_bytes=None,
    source='https://cloud.google.com/tpu/docs/v4',
  ),
)


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


def _works(
  rows: Mapping[str, tables.Entry],
  of_slices: Mapping[str, tables.Entry],
) -> Iterator[tuple[str, Work]]:
  """Yields the work of the steps of a model, on one slice and between two."""
  sent = {row: e.sent_bytes for row, e in of_slices.items()}
  for row, name in _STEPS.items():
    e = rows[row]
    # Nearly no step takes the conditional of SAM's norm.
    count = e.collectives - e.collectives_inside
    yield name, Work(e.flops, count, e.collective_bytes, sent.get(row))
  base, e = rows['sgd'], rows['ae_sam']
  fraction, skipped = ASCENT_FRACTION, 1 - ASCENT_FRACTION
  yield (
    f'AE-SAM, {fraction:.0%} ascent steps',
    Work(
      skipped * base.flops + fraction * e.flops,
      e.collectives - skipped * e.collectives_inside,
      e.collective_bytes - skipped * e.collective_bytes_inside,
      # Its ascent steps are those of SAM.
      skipped * sent['sgd'] + fraction * sent['sam'],
    ),
  )


def seconds(chip: Chip, chips: int, work: Work) -> float:
  """Returns the time of a step, communication after computation.

  All-reduces in a slice send every byte around the ring twice, except for the
  own part.

  Raises:
    ValueError: if several slices are needed and their traffic is unknown.
  """
  time = work.flops / (chip.flops * UTILIZATION)
  inner = min(chips, chip.slice_chips)
  slices = chips // inner
  if inner > 1:
    time += 2 * work.bytes * (inner - 1) / inner / chip.link_bytes
    time += work.collectives * HOP_SECONDS * chip.hops(inner)
  if slices > 1:
    if chip.network_bytes is None or work.sent_bytes is None:
      msg = f'chips must be at most {inner} of {chip.name}, not {chips}'
      raise ValueError(msg)
    # Compiled for two slices, which send to each other.
    time += work.sent_bytes * 2 * (slices - 1) / slices / chip.network_bytes
    time += work.collectives * NETWORK_SECONDS
  return time


def estimates(entries: list[tables.Entry]) -> Iterator[Estimate]:
  """Yields the estimates of all chips and models."""
  for model in dict.fromkeys(e.model for e in entries):
    rows, of_slices = (
      {
        e.row: e
        for e in entries
        if (e.topology, e.model, e.optimization) == (topology, model, 'O0')
      }
      for topology in (SOURCE, SLICES)
    )
    works = dict(_works(rows, of_slices))
    for chip in CHIPS:
      for name, work in works.items():
        first = seconds(chip, 1, work)
        for chips in COUNTS:
          if chips > chip.slice_chips and work.sent_bytes is None:
            continue
          time = seconds(chip, chips, work)
          base = seconds(chip, chips, works['base optimizer'])
          yield Estimate(
            chip.name, model, name, chips, time, first / time, time / base
          )


def page(found: list[Estimate]) -> str:
  """Returns the page: tables, published numbers and assumptions."""
  parts = [_HEADING, '\n'.join([*map(_published, CHIPS), _ASSUMPTIONS])]
  for chip, model in dict.fromkeys((e.chip, e.model) for e in found):
    rows = [e for e in found if (e.chip, e.model) == (chip, model)]
    lines = [
      f'| step, on chips: | {" | ".join(map(str, COUNTS))} |',
      '|---' * (1 + len(COUNTS)) + '|',
    ]
    for name in dict.fromkeys(e.step for e in rows):
      times = {
        e.chips: f'{1e3 * e.seconds:.2f} ms, {e.efficiency:.0%}, '
        f'{e.relative:.2f}'
        for e in rows
        if e.step == name
      }
      cells = ' | '.join(times.get(count, '—') for count in COUNTS)
      lines.append(f'| {name} | {cells} |')
    parts += [f'### {model} on {chip}, estimated', '\n'.join(lines)]
  return '\n\n'.join(parts) + '\n'


def _published(chip: Chip) -> str:
  network = 'none published, and none needed for one slice'
  if chip.network_bytes is not None:
    network = f'{chip.network_bytes / 1e9:.3f} GB/s per chip between slices'
  return (
    f'- {chip.name}: {chip.flops / 1e12:.0f} Tflop/s in bfloat16, '
    f'{chip.link_bytes / 1e9:.0f} GB/s that a chip sends over its links in a '
    f'torus of {chip.axes} dimensions and at most {chip.slice_chips} chips; '
    f'{network} ({chip.source}).'
  )


_ASSUMPTIONS = f"""\
- Work and bytes per chip are those of {SOURCE}, with 16 images per chip, for
  any number of chips: the batch grows with their number.
- Computation reaches {UTILIZATION:.0%} of the peak for all steps and both
  models: assumed, not measured. This includes the effect of memory bandwidth.
- Computation and communication do not overlap. All links of a chip are in use,
  and every axis is a ring, which is not true for smaller slices of v5e.
- A collective in a slice takes {1e6 * HOP_SECONDS:.1f} microseconds per hop in
  addition to the time of its bytes; the hops are the sum of the sides of the
  torus. A collective between slices takes {1e6 * NETWORK_SECONDS:.0f}
  microseconds more. Both are assumptions.
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


def main() -> None:
  """Computes pod_estimate.md and .csv from pod.csv."""
  found = list(estimates(tables.read(RESULTS / 'pod.csv')))
  tables.write(RESULTS / 'pod_estimate.csv', found)
  text = page(found)
  (RESULTS / 'pod_estimate.md').write_text(text, encoding='utf-8')
  print(text)


if __name__ == '__main__':
  main()
