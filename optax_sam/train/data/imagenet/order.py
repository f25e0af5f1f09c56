"""The order of images in training."""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np


def permutation(count: int, *seed: int) -> np.ndarray:
  """Returns a permutation that does not depend on the NumPy version.

  `numpy.random.Generator.permutation` may change between versions of NumPy. The
  raw words of a bit generator are stable, so the permutation sorts these.

  >>> permutation(5, 0)
  array([3, 2, 1, 0, 4])
  """
  words = np.random.PCG64(np.random.SeedSequence(seed)).random_raw(count)
  return np.argsort(words, kind='stable')


@dataclasses.dataclass(frozen=True)
class TrainingOrder:
  """The order of training images over all processes.

  Step `t` has the positions from `t * batch_size` to `(t + 1) * batch_size`.
  The image at a position does not depend on the process.

  Every epoch has a different order, and is a whole number of steps: it leaves
  out the images that don't fill a last batch, different ones each time.
  """

  examples: int
  batch_size: int
  seed: int

  def at(self, position: int) -> Iterator[int]:
    """Yields the image at a position, then its substitutes.

    The loader takes the first one that can be decoded. Processes don't
    communicate about corrupt images, so the substitutes are a function of the
    position too. They are the images that this epoch leaves out, starting at an
    index that depends on the position, then those that follow. So a corrupt
    image displaces no other image. An image is repeated only if the epoch
    leaves out none, or if two positions have the same substitute.
    """
    shown = self.examples // self.batch_size * self.batch_size
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
