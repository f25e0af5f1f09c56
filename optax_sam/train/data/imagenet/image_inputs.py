"""The inputs of a run on ImageNet, or on any images in its layout.

The images of a training step, their crops and their mirroring are a function of
seed and step, so a run may resume with another number of processes. Process `i`
of `n` loads the `i`-th of `n` equal parts of a step.

Evaluation yields every image once, in order. `is_example` is false for padding
of the last batch and for corrupt images; in training others replace these.
"""

import itertools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np

from optax_sam.train.config import errors
from optax_sam.train.data import datasets, image_files, inputs
from optax_sam.train.data.image_files import CorruptImage
from optax_sam.train.data.imagenet import shards, transforms

# Steps are counted up to here, far beyond any run.
_POSITIONS = 2**62
_MOST_CORRUPT_IN_A_ROW = 100
# The entry with the index of a corrupt image.
_CORRUPT = 'corrupt'


class ImageInputs(inputs.Inputs):
  """Images that are decoded and cropped on demand.

  Batches are `inputs` uint8 (B, size, size, 3), `labels` int32 (B,), and `ids`
  int32 (B,) in training or `is_example` bool (B,) in evaluation.
  """

  def __init__(
    self,
    directory: pathlib.Path,
    *,
    batch_size: int,
    size: int = 224,
    threads: int = 16,
    prefetch: int = 16,
    max_pixels: int = image_files.MOST_PIXELS,
    process: tuple[int, int] | None = None,
    dtype: Any = 'float32',
    say: Callable[[str], None],
  ) -> None:
    """Opens an image folder or shards; raises a ValueError if it is invalid.

    The numbers are those of the flags of `train`. The process is its index and
    the number of processes, by default JAX's; `dtype` is that of normalized
    images; `say` is called with a message for every corrupt image.
    """
    self._images = images = shards.open_images(directory)
    for name, source in (('train', images.train), ('val', images.val)):
      transforms.check_any(source, directory / name, max_pixels)
    self._size, self._max_pixels = size, max_pixels
    self._reading = grain.ReadOptions(
      num_threads=min(threads, prefetch), prefetch_buffer_size=prefetch
    )
    self._process = inputs.process(process)
    self._dtype = dtype
    self._say = say
    self._skipped: set[str] = set()
    self._batches: Any = None
    self._next = (-1, -1)  # seed and step
    self.classes = len(images.classes)
    self.batch_size = batch_size
    self.train_examples = len(images.train)
    self.test_examples = len(images.val)

  @property
  def skipped(self) -> int:
    """Number of corrupt images that this process has loaded."""
    return len(self._skipped)

  def sample(self) -> inputs.Batch:
    """Returns black images: only their shape is needed."""
    labels = np.zeros(self.batch_size // self._process[1], np.int32)
    images = np.zeros((len(labels), self._size, self._size, 3), np.uint8)
    return {'inputs': images, 'labels': labels}

  def batch(self, step: int, seed: int, *, ids: bool = False) -> inputs.Batch:
    """Returns this process's rows of a step; the next ones are prefetched."""
    if self._next != (seed, step):
      self.close()
      rows = self._rows(self._training(seed))
      self._batches = self._read(self._images.train, rows, step)
    batch = next(self._batches)
    self._next = (seed, step + 1)
    return batch if ids else {k: batch[k] for k in batch if k != 'ids'}

  def normalize(self, values: Any) -> jax.Array:
    """Normalizes each channel to mean 0 and standard deviation 1."""
    return transforms.normalize(values, self._dtype)

  def test(self) -> Iterator[inputs.Batch]:
    """Yields the batches of the validation images."""
    source = self._images.val
    examples = self._evaluation(source, range(len(source)), self.batch_size)
    return self._read(source, self._rows(examples))

  def fixed(self, count: int) -> inputs.Batch:
    """Returns evenly spaced training images, cropped as for evaluation."""
    # Neighbours belong to the same class.
    source = self._images.train
    chosen = [k * len(source) // count for k in range(count)]
    examples = self._evaluation(source, chosen, count).batch(count)
    return next(self._read(source, examples))

  def close(self) -> None:
    """Stops the threads that make batches."""
    if self._batches is not None:
      self._batches.close()
    self._batches, self._next = None, (-1, -1)

  def _rows(self, examples: Any) -> Any:
    """Returns a Grain dataset of the batches of this process."""
    index, count = self._process
    return examples.batch(self.batch_size // count)[index::count]

  def _read(
    self, source: shards.Source, rows: Any, step: int = 0
  ) -> Iterator[inputs.Batch]:
    """Yields batches from a step on, without the entry of corrupt images."""
    # Each thread of Grain makes a whole batch, so that Grain's overhead per
    # item occurs once per batch, and hardly any of it in the training thread.
    batches: Any = iter(rows.to_iter_dataset(self._reading))
    batches.set_state({'next_index': step})
    try:
      for batch in batches:
        # Threads share no state, and prefetched batches do not count.
        found = batch.pop(_CORRUPT)
        for number in found[found >= 0].tolist():
          where = errors.printable(source.where(number))
          if where not in self._skipped:
            self._skipped.add(where)
            self._say(
              f'{where} cannot be decoded, or has more pixels than '
              f'--max-pixels, and is skipped ({self.skipped} so far)'
            )
        yield batch
    except ValueError as error:  # Grain adds lines
      raise ValueError(errors.first_line(error)) from None
    finally:
      batches.close()

  def _training(self, seed: int) -> Any:
    """Returns a Grain dataset of training examples without an end."""
    source = self._images.train
    shown = len(source) // self.batch_size * self.batch_size

    def example(
      position: int, generator: np.random.Generator
    ) -> dict[str, Any]:
      epoch, place = divmod(position, shown)
      order = datasets.order(len(source), seed, epoch)
      # A corrupt image is replaced by one that this epoch leaves out, if any.
      ordered = itertools.chain([order[place]], order[shown:], order[:shown])
      corrupt = -1
      for index in itertools.islice(map(int, ordered), _MOST_CORRUPT_IN_A_ROW):
        found = self._example(source, index, generator)
        if found[_CORRUPT] < 0:
          return found | {_CORRUPT: np.int64(corrupt), 'ids': np.int32(index)}
        corrupt = index if corrupt < 0 else corrupt
      msg = (
        f'{source.where(corrupt)} and all its substitutes cannot be decoded; '
        f'check whether these are JPEG files'
      )
      raise ValueError(msg)

    # Generators are created before the slice, so the crop of an image does not
    # depend on the process.
    return grain.MapDataset.range(_POSITIONS).random_map(example, seed=seed)

  def _evaluation(
    self, source: shards.Source, indices: Sequence[int], batch_size: int
  ) -> Any:
    """Returns a Grain dataset of examples, padded to full batches."""

    def example(place: int) -> dict[str, Any]:
      index = indices[place] if place < len(indices) else None
      found = self._example(source, index)
      is_example = index is not None and found[_CORRUPT] < 0
      return found | {'is_example': np.bool_(is_example)}

    steps = -(-len(indices) // batch_size)
    return grain.MapDataset.range(steps * batch_size).map(example)

  def _example(
    self,
    source: shards.Source,
    index: int | None,
    generator: np.random.Generator | None = None,
  ) -> dict[str, Any]:
    """Returns an example; black if it is corrupt, or is padding (None)."""
    size, label, corrupt = self._size, 0, -1
    pixels = np.zeros((size, size, 3), np.uint8)
    if index is not None:
      try:
        content, label = source[index]
        pixels = transforms.image(content, size, self._max_pixels, generator)
      except CorruptImage:
        label, corrupt = 0, index
    numbers = {'labels': np.int32(label), _CORRUPT: np.int64(corrupt)}
    return {'inputs': pixels, **numbers}
