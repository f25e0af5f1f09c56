"""Examples of a batch: the image at one position."""

import dataclasses
import itertools
from typing import Any

import numpy as np

from optax_sam.train.data.imagenet import transforms
from optax_sam.train.data.imagenet.order import TrainingOrder
from optax_sam.train.data.imagenet.sources import CorruptImage, Source

# The entry with the index of a corrupt image.
CORRUPT = 'corrupt'
_NOT_CORRUPT = np.int64(-1)
_MOST_CORRUPT_IN_A_ROW = 100


@dataclasses.dataclass(frozen=True)
class TrainingExample:
  """Maps a position to its example, or to a substitute for a corrupt image."""

  source: Source
  order: TrainingOrder
  size: int

  def __call__(
    self, position: int, generator: np.random.Generator
  ) -> dict[str, Any]:
    """Reads the example at a position, counted over epochs and processes."""
    corrupt = _NOT_CORRUPT
    candidates = self.order.at(position)
    for index in itertools.islice(candidates, _MOST_CORRUPT_IN_A_ROW):
      try:
        stored = self.source[index]
        image = transforms.training_image(stored.jpeg, self.size, generator)
      except CorruptImage:
        if corrupt == _NOT_CORRUPT:
          corrupt = np.int64(index)
        continue
      return {
        'inputs': image,
        'labels': np.int32(stored.label),
        'ids': np.int32(index),
        CORRUPT: corrupt,
      }
    msg = (
      f'{self.source.where(int(corrupt))} and all its substitutes '
      f'cannot be decoded; check whether these are JPEG files'
    )
    raise ValueError(msg)


@dataclasses.dataclass(frozen=True)
class EvaluationExample:
  """Maps an index to an example, or to padding beyond the last one."""

  source: Source
  size: int

  def __call__(self, index: int) -> dict[str, Any]:
    """Reads the image with this index."""
    corrupt = _NOT_CORRUPT
    if index < len(self.source):
      try:
        stored = self.source[index]
        image = transforms.evaluation_image(stored.jpeg, self.size)
        return self._example(image, stored.label, True, corrupt)
      except CorruptImage:
        corrupt = np.int64(index)
    filling = np.zeros((self.size, self.size, 3), np.uint8)
    return self._example(filling, 0, False, corrupt)

  def _example(
    self, image: np.ndarray, label: int, is_example: bool, corrupt: np.int64
  ) -> dict[str, Any]:
    return {
      'inputs': image,
      'labels': np.int32(label),
      'is_example': np.bool_(is_example),
      CORRUPT: corrupt,
    }
