"""Inputs of a run from ImageNet, or from any images in its layout."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from optax_sam.train.data import imagenet
from optax_sam.train.data.imagenet.transforms import check_any
from optax_sam.train.data.inputs import Batch, Inputs


class ImageInputs(Inputs):
  """Images that are read, decoded and cropped on demand."""

  def __init__(
    self,
    directory: pathlib.Path,
    options: imagenet.InputOptions,
    *,
    dtype: Any,
    say: Callable[[str], None],
  ) -> None:
    """Opens an image folder or shards; raises a ValueError if it is invalid.

    `say` is called with a message for every corrupt image.
    """
    options.process()
    self._images = images = imagenet.open_images(directory)
    for name, source in (('train', images.train), ('val', images.val)):
      check_any(source, directory / name, options.max_pixels)
    self._options = options
    self._dtype = dtype
    self._say = say
    self._training: dict[int, imagenet.Input] = {}  # by seed
    self._batches: Any = None
    self._next: tuple[int, int] | None = None  # seed and step
    self._evaluation = imagenet.evaluation_input(images.val, options, say=say)
    self.classes = len(images.classes)
    self.batch_size = options.batch_size
    self.train_examples = len(images.train)
    self.test_examples = len(images.val)

  @property
  def skipped(self) -> int:
    """Number of images that could not be decoded."""
    inputs = (self._evaluation, *self._training.values())
    return sum(one.skipped for one in inputs)

  def sample(self) -> Batch:
    """Returns black images: only their shape is needed."""
    size, (_, count) = self._options.size, self._options.process()
    rows = self.batch_size // count
    return {
      'inputs': np.zeros((rows, size, size, 3), np.uint8),
      'labels': np.zeros(rows, np.int32),
    }

  def batch(self, step: int, seed: int, *, ids: bool = False) -> Batch:
    """Returns the batch of a step; the next one is prefetched."""
    if self._next != (seed, step):
      self.close()
      if seed not in self._training:
        self._training[seed] = imagenet.training_input(
          self._images.train, self._options, seed=seed, say=self._say
        )
      self._batches = self._training[seed].start(step)
    batch = next(self._batches)
    self._next = (seed, step + 1)
    return batch if ids else {k: batch[k] for k in batch if k != 'ids'}

  def normalize(self, values: Any) -> jax.Array:
    """Normalizes each channel to mean 0 and standard deviation 1."""
    return imagenet.normalize(values, self._dtype)

  def test(self) -> imagenet.Input:
    """Returns the batches of the validation images."""
    return self._evaluation

  def fixed(self, count: int) -> Batch:
    """Returns evenly spaced training images, cropped as for evaluation.

    Neighbours belong to the same class.
    """
    # Every process loads all of them.
    options = dataclasses.replace(
      self._options, batch_size=count, process_index=0, process_count=1
    )
    train = self._images.train
    chosen = [k * len(train) // count for k in range(count)]
    (batch,) = imagenet.evaluation_input(
      train, options, say=self._say, chosen=chosen
    )
    return batch

  def close(self) -> None:
    """Stops the threads that make batches."""
    if self._batches is not None:
      self._batches.close()
    self._batches = self._next = None
