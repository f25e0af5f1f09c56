"""Published speeds of TPU chips and of their links."""

import dataclasses


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

  def shape(self, chips: int) -> tuple[int, ...]:
    """Returns the sides of the most compact torus for a power of two."""
    sides = [1] * self.axes
    while chips > 1:
      sides[sides.index(min(sides))] *= 2
      chips //= 2
    return tuple(sides)


V5E = Chip(
  name='v5e',
  flops=197e12,
  # 400 GB/s in both directions; 51.2 TB/s all-reduce bandwidth of a pod is 200
  # per chip.
  link_bytes=200e9,
  axes=2,
  slice_chips=256,
  network_bytes=6.4e12 / 8 / 256,
  source='https://cloud.google.com/tpu/docs/v5e',
)
V4 = Chip(
  name='v4',
  flops=275e12,
  link_bytes=1.1e15 / 4096,  # all-reduce bandwidth of a pod
  axes=3,
  slice_chips=4096,
  network_bytes=None,
  source='https://cloud.google.com/tpu/docs/v4',
)
