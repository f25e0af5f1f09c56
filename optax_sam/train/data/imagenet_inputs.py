"""Inputs of a run from ImageNet, or from any images in its layout."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from optax_sam.train.data import imagenet
from optax_sam.train.data.inputs import Batch


class ImageInputs:
  """Images that are read, decoded and cropped on demand."""

  def __init__(
    self,
    directory: pathlib.Path,
    options: imagenet.InputOptions,
    *,
    dtype: Any,
    say: Callable[[str], None],
  ) -> None:
    """Lists the images without reading them.

    Args:
      directory: an image folder, or the shards of one.
      options: options of the input pipeline.
      dtype: dtype of the computation.
      say: called with a message for every corrupt image.

    Raises:
      ValueError: if the directory or an option is invalid, in one line.
    """
    options.process()
    self._images = imagenet.open_images(directory)
    self._options = options
    self._dtype = dtype
    self._say = say
    self._training: tuple[int, imagenet.TrainingInput] | None = None
    self._evaluation = imagenet.EvaluationInput(
      self._images.val, options, say=say
    )
    self.classes = len(self._images.classes)
    self.batch_size = options.batch_size
    self.train_examples = len(self._images.train)
    self.test_examples = len(self._images.val)

  @property
  def skipped(self) -> int:
    """Number of images that could not be decoded."""
    trained_on = self._training[1].skipped if self._training else 0
    return trained_on + self._evaluation.skipped

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
    training = self._training_of(seed)
    state = training.get_state()
    if state['step'] != step:
      training.set_state({**state, 'step': step})
    batch = next(training)
    return batch if ids else {k: batch[k] for k in batch if k != 'ids'}

  def normalize(self, values: Any) -> jax.Array:
    """Normalizes each channel to mean 0 and standard deviation 1."""
    return imagenet.normalize(values, self._dtype)

  def test(self) -> imagenet.EvaluationInput:
    """Returns the batches of the validation images."""
    return self._evaluation

  def train(self) -> None:
    """Returns None: a pass over all images would cost a third of an epoch."""

  def held_out(self, seed: int) -> None:
    """Returns None: a run trains on all images."""

  def fixed(self, count: int) -> Batch:
    """Returns evenly spaced training images, cropped as for evaluation."""
    chosen = _Chosen(self._images.train, count)
    options = imagenet.InputOptions(
      batch_size=count,
      size=self._options.size,
      threads=self._options.threads,
      prefetch=self._options.prefetch,
      process_index=0,  # every process loads all of them
      process_count=1,
    )
    (batch,) = imagenet.EvaluationInput(chosen, options, say=self._say)
    return batch

  def close(self) -> None:
    """Stops the threads that make batches."""
    if self._training:
      self._training[1].close()

  def _training_of(self, seed: int) -> imagenet.TrainingInput:
    if self._training is None or self._training[0] != seed:
      self.close()
      training = imagenet.TrainingInput(
        self._images.train, self._options, seed=seed, say=self._say
      )
      self._training = (seed, training)
    return self._training[1]


class _Chosen:
  """Some of the images of a source.

  They are evenly spaced, because neighbours belong to the same class.
  """

  def __init__(self, source: Any, count: int) -> None:
    self._source = source
    self._indices = [k * len(source) // count for k in range(count)]

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int) -> Any:
    return self._source[self._indices[index]]

  def where(self, index: int) -> str:
    return self._source.where(self._indices[index])
