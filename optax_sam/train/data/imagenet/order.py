"""The order of the images: in training, and in the shards."""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np


def permutation(count: int, *seed: int) -> np.ndarray:
  """Returns an order of `count` things, the same one for ever.

  `numpy.random.Generator.permutation` may change from one version of NumPy to
  the next; the raw words of a bit generator may not, so these are sorted.

  Args:
    count: how many things.
    seed: any integers from 0.

  Returns:
    Their indices in the new order, int64.

  >>> permutation(5, 0)
  array([3, 2, 1, 0, 4])
  """
  words = np.random.PCG64(np.random.SeedSequence(seed)).random_raw(count)
  return np.argsort(words, kind='stable')


@dataclasses.dataclass(frozen=True)
class TrainingOrder:
  """Which image is shown when, on all processes together.

  A run is one sequence of positions; step `t` shows those from
  `t * batch_size` up to `(t + 1) * batch_size`. What is at a position is a
  function of these three numbers, whichever process it falls to.

  Every epoch has an order of its own. Images that don't fill a last batch are
  left out of that epoch, so that an epoch is a whole number of steps; as the
  order changes, they are others each time.

  Attributes:
    examples: number of images, at least a batch.
    batch_size: images in a step, over all processes.
    seed: of the order.
  """

  examples: int
  batch_size: int
  seed: int

  @property
  def steps_per_epoch(self) -> int:
    """Steps in which every image is shown once, but for those left out."""
    return self.examples // self.batch_size

  def at(self, position: int) -> Iterator[int]:
    """Yields the image at a position, then those that may stand in for it.

    The first that can be decoded is shown. Nobody knows in advance which can,
    and processes don't tell each other, so the stand-ins are a function of the
    position too: the images that this epoch leaves out, from a place that
    differs between positions, then those that follow. So one corrupt image
    costs no other its turn, and none is shown twice unless an epoch leaves out
    none, or two positions meet at the same stand-in.
    """
    shown = self.steps_per_epoch * self.batch_size
    epoch, place = divmod(position, shown)
    order = _epoch(self.examples, self.seed, epoch)
    yield int(order[place])
    left_out = order[shown:]
    for offset in range(len(left_out)):
      yield int(left_out[(place + offset) % len(left_out)])
    for offset in range(1, shown):
      yield int(order[(place + offset) % shown])


@functools.lru_cache(maxsize=4)
def _epoch(examples: int, seed: int, epoch: int) -> np.ndarray:
  return permutation(examples, seed, epoch)
