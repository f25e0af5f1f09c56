"""Batches of ImageNet, or of any images in its layout, read on demand.

The images of a training step, their crops and their mirroring are a function of
seed and step. So a run may resume at any step, with another number of
processes. Process `i` of `n` loads the `i`-th of `n` equal parts of a step, so
even the order of the rows stays the same.

Evaluation yields every image once, in order. The last batch is padded, and
`is_example` is false for padding. So all processes have the same number of full
batches, and sums over them are exact.

The process that loads a corrupt image reports it once and counts it. In
evaluation `is_example` is false for it; in training another image replaces it.
"""

import dataclasses
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

Say = Callable[[str], None]

# Steps are counted up to here, far beyond any run.
_POSITIONS = 2**62
_MOST_CORRUPT_IN_A_ROW = 100
# The entry with the index of a corrupt image.
_CORRUPT = 'corrupt'


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputOptions:
  """Options of the input pipeline.

  Attributes:
    batch_size: images in a batch, summed over all processes.
    size: height and width of the images in pixels.
    threads: batches that this process makes concurrently.
    prefetch: batches that this process makes in advance, including unfinished
      ones. At size 224 a batch takes 150 kB per image.
    max_pixels: larger images are skipped as corrupt, without decoding them.
    process: index of this process and number of processes; None for JAX's.
  """

  batch_size: int
  size: int = 224
  threads: int = 16
  prefetch: int = 16
  max_pixels: int = image_files.MOST_PIXELS
  process: tuple[int, int] | None = None


class Input:
  """Batches that can be read from any step on, any number of times."""

  def __init__(
    self, source: shards.Source, options: InputOptions, examples: Any, say: Say
  ) -> None:
    """Prepares batches of a Grain dataset with the examples of all processes.

    `say` is called with a message for every corrupt image.
    """
    index, count = inputs.process(options.process)
    # Each thread of Grain makes a whole batch, so that Grain's overhead per
    # item occurs once per batch, and hardly any of it in the training thread.
    batches = examples.batch(options.batch_size // count)[index::count]
    self._batches = batches.to_iter_dataset(
      grain.ReadOptions(
        num_threads=min(options.threads, options.prefetch),
        prefetch_buffer_size=options.prefetch,
      )
    )
    self._steps = len(batches)
    self._source = source
    self._say = say
    self._met: set[int] = set()

  @property
  def skipped(self) -> int:
    """Number of corrupt images that this process has loaded."""
    return len(self._met)

  def __len__(self) -> int:
    """Returns the number of batches, the same on every process."""
    return self._steps

  def __iter__(self) -> Iterator[inputs.Batch]:
    """Iterates over all batches."""
    return self.start(0)

  def start(self, step: int) -> Iterator[inputs.Batch]:
    """Yields the batches from a step on; `close` it if it is not exhausted."""
    batches = iter(self._batches)
    batches.set_state({'next_index': step})
    try:
      for batch in batches:
        # Threads share no state, and prefetched batches do not count.
        found = batch.pop(_CORRUPT)
        for index in sorted({*found[found >= 0].tolist()} - self._met):
          self._met.add(index)
          where = errors.printable(self._source.where(index))
          self._say(
            f'{where} cannot be decoded, or has more pixels than --max-pixels, '
            f'and is skipped ({self.skipped} so far)'
          )
        yield batch
    except ValueError as error:  # Grain adds lines
      raise ValueError(str(error).split('\n')[0]) from None
    finally:
      batches.close()


def training_input(
  source: shards.Source, options: InputOptions, *, seed: int, say: Say
) -> Input:
  """Returns training batches without an end.

  A batch is `inputs` uint8 (B, size, size, 3), `labels` int32 (B,) and `ids`
  int32 (B,), the indices of its images in the source, where B is `batch_size`
  divided by the number of processes.
  """
  shown = len(source) // options.batch_size * options.batch_size

  def example(position: int, generator: np.random.Generator) -> dict[str, Any]:
    epoch, place = divmod(position, shown)
    order = datasets.order(len(source), seed, epoch)
    # A corrupt image is replaced by one that this epoch leaves out, if any.
    ordered = itertools.chain([order[place]], order[shown:], order[:shown])
    corrupt = -1
    for index in itertools.islice(map(int, ordered), _MOST_CORRUPT_IN_A_ROW):
      found = _example(source, options, index, generator)
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
  examples = grain.MapDataset.range(_POSITIONS).random_map(example, seed=seed)
  return Input(source, options, examples, say)


def evaluation_input(
  source: shards.Source,
  options: InputOptions,
  *,
  say: Say,
  chosen: Sequence[int] | None = None,
) -> Input:
  """Returns the batches of one pass over images, all or some of them.

  A batch is `inputs` uint8 (B, size, size, 3), `labels` int32 (B,) and
  `is_example` bool (B,). Where that is false, pixels and label are 0.
  """
  indices = range(len(source)) if chosen is None else chosen

  def example(place: int) -> dict[str, Any]:
    index = indices[place] if place < len(indices) else None
    found = _example(source, options, index)
    is_example = index is not None and found[_CORRUPT] < 0
    return found | {'is_example': np.bool_(is_example)}

  steps = -(-len(indices) // options.batch_size)
  places = grain.MapDataset.range(steps * options.batch_size)
  return Input(source, options, places.map(example), say)


def _example(
  source: shards.Source,
  options: InputOptions,
  index: int | None,
  generator: np.random.Generator | None = None,
) -> dict[str, Any]:
  """Returns an example; black if it is corrupt, or is padding (None)."""
  size, label, corrupt = options.size, 0, -1
  pixels = np.zeros((size, size, 3), np.uint8)
  if index is not None:
    try:
      content, label = source[index]
      pixels = transforms.image(content, size, options.max_pixels, generator)
    except CorruptImage:
      label, corrupt = 0, index
  numbers = {'labels': np.int32(label), _CORRUPT: np.int64(corrupt)}
  return {'inputs': pixels, **numbers}


class ImageInputs(inputs.Inputs):
  """The inputs of a run: images that are decoded and cropped on demand."""

  def __init__(
    self,
    directory: pathlib.Path,
    options: InputOptions,
    *,
    dtype: Any,
    say: Say,
  ) -> None:
    """Opens an image folder or shards; raises a ValueError if it is invalid.

    `say` is called with a message for every corrupt image.
    """
    self._images = images = shards.open_images(directory)
    for name, source in (('train', images.train), ('val', images.val)):
      transforms.check_any(source, directory / name, options.max_pixels)
    self._options = options
    self._dtype = dtype
    self._say = say
    self._training: Any = None
    self._batches: Any = None
    self._next = (-1, -1)  # seed and step
    self._evaluation = evaluation_input(images.val, options, say=say)
    self.classes = len(images.classes)
    self.batch_size = options.batch_size
    self.train_examples = len(images.train)
    self.test_examples = len(images.val)

  @property
  def skipped(self) -> int:
    """Number of images that could not be decoded."""
    found = 0 if self._training is None else self._training.skipped
    return self._evaluation.skipped + found

  def sample(self) -> inputs.Batch:
    """Returns black images: only their shape is needed."""
    _, count = inputs.process(self._options.process)
    rows, size = self.batch_size // count, self._options.size
    return {
      'inputs': np.zeros((rows, size, size, 3), np.uint8),
      'labels': np.zeros(rows, np.int32),
    }

  def batch(self, step: int, seed: int, *, ids: bool = False) -> inputs.Batch:
    """Returns the batch of a step; the next one is prefetched."""
    if self._next != (seed, step):
      self.close()
      if self._training is None or seed != self._next[0]:
        self._training = training_input(
          self._images.train, self._options, seed=seed, say=self._say
        )
      self._batches = self._training.start(step)
    batch = next(self._batches)
    self._next = (seed, step + 1)
    return batch if ids else {k: batch[k] for k in batch if k != 'ids'}

  def normalize(self, values: Any) -> jax.Array:
    """Normalizes each channel to mean 0 and standard deviation 1."""
    return transforms.normalize(values, self._dtype)

  def test(self) -> Input:
    """Returns the batches of the validation images."""
    return self._evaluation

  def fixed(self, count: int) -> inputs.Batch:
    """Returns evenly spaced training images, cropped as for evaluation.

    Neighbours belong to the same class. Every process loads all of them.
    """
    train = self._images.train
    (batch,) = evaluation_input(
      train,
      dataclasses.replace(self._options, batch_size=count, process=(0, 1)),
      say=self._say,
      chosen=[k * len(train) // count for k in range(count)],
    )
    return batch

  def close(self) -> None:
    """Stops the threads that make batches."""
    if self._batches is not None:
      self._batches.close()
    self._batches, self._next = None, (self._next[0], -1)
