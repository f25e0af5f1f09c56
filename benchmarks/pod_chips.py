"""Published speeds of TPU chips and of the links between them."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published speeds of one chip and of its links.

  Attributes:
    name: of the chip.
    flops: peak operations in bfloat16 each second.
    link_bytes: bytes each second that one chip sends to its neighbours, over
      all links together.
    axes: dimensions of the torus.
    slice_chips: largest number of chips that links join.
    network_bytes: bytes each second of one chip over the network of the data
      center, None where none is published.
    source: where these numbers stand.
  """

  name: str
  flops: float
  link_bytes: float
  axes: int
  slice_chips: int
  network_bytes: float | None
  source: str

  def shape(self, chips: int) -> tuple[int, ...]:
    """Returns the sides of the most compact torus of a power of two."""
    sides = [1] * self.axes
    while chips > 1:
      sides[sides.index(min(sides))] *= 2
      chips //= 2
    return tuple(sides)


V5E = Chip(
  name='v5e',
  flops=197e12,
  # 400 GB/s of both directions; 51.2 TB/s of all-reduce in a pod is 200 a chip.
  link_bytes=200e9,
  axes=2,
  slice_chips=256,
  network_bytes=6.4e12 / 8 / 256,
  source='https://cloud.google.com/tpu/docs/v5e',
)
V4 = Chip(
  name='v4',
  flops=275e12,
  link_bytes=1.1e15 / 4096,  # of all-reduce in a pod
  axes=3,
  slice_chips=4096,
  network_bytes=None,
  source='https://cloud.google.com/tpu/docs/v4',
)
