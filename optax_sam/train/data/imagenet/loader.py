"""Batches for training and evaluation; each process loads its own rows.

The images of a training step, their crops and their mirroring are a function of
seed and step (`imagenet.order`). So a run may resume at any step, with another
number of processes. Process `i` of `n` loads the `i`-th of `n` equal parts of a
step, so even the order of the rows stays the same.

Evaluation yields every image once, in order. The last batch is padded, and
`is_example` is false for padding. So all processes have the same number of full
batches, and sums over them are exact.

The process that loads a corrupt image reports it once and counts it. In
evaluation `is_example` is false for it; in training another image replaces it.

Each thread of Grain makes a whole batch. So Grain's overhead per item occurs
once per batch, and hardly any of it in the training thread.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np

from optax_sam.train.config import errors
from optax_sam.train.data import image_files
from optax_sam.train.data.image_files import CorruptImage
from optax_sam.train.data.imagenet import transforms
from optax_sam.train.data.imagenet.order import TrainingOrder
from optax_sam.train.data.imagenet.shards import Source

Batch = dict[str, np.ndarray]
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
    process_index: index of this process; that of JAX if None.
    process_count: number of processes; that of JAX if None.
  """

  batch_size: int
  size: int = 224
  threads: int = 16
  prefetch: int = 16
  max_pixels: int = image_files.MOST_PIXELS
  process_index: int | None = None
  process_count: int | None = None

  def process(self) -> tuple[int, int]:
    """Returns index and number of processes; raises if an option is invalid."""
    for name in ('batch_size', 'size', 'threads', 'prefetch', 'max_pixels'):
      most = 2**12 if name in ('threads', 'prefetch') else 2**31
      if not 1 <= getattr(self, name) <= most:
        msg = f'{name} must be from 1 to {most}, not {getattr(self, name)}'
        raise ValueError(msg)
    index, count = self.process_index, self.process_count
    index = jax.process_index() if index is None else index
    count = jax.process_count() if count is None else count
    if not 0 <= index < count:
      msg = f'process_index must be from 0 to {count - 1}, not {index}'
      raise ValueError(msg)
    if self.batch_size % count:
      msg = (
        f'batch_size must be a multiple of the number of processes, {count}, '
        f'not {self.batch_size}'
      )
      raise ValueError(msg)
    return index, count


class Input:
  """Batches that can be read from any step on, any number of times."""

  def __init__(
    self, source: Source, options: InputOptions, examples: Any, say: Say
  ) -> None:
    """Prepares batches of a Grain dataset with the examples of all processes.

    `say` is called with a message for every corrupt image.
    """
    index, count = options.process()
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

  def __iter__(self) -> Iterator[Batch]:
    """Iterates over all batches."""
    return self.start(0)

  def start(self, step: int) -> Iterator[Batch]:
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
  source: Source, options: InputOptions, *, seed: int, say: Say
) -> Input:
  """Returns training batches without an end.

  A batch is `inputs` uint8 (B, size, size, 3), `labels` int32 (B,) and `ids`
  int32 (B,), the indices of its images in the source, where B is `batch_size`
  divided by the number of processes. An invalid option raises a ValueError.
  """
  if seed < 0 or options.batch_size > len(source):
    msg = (
      f'seed must be at least 0, not {seed}, and batch_size at most the number '
      f'of training images, {len(source)}, not {options.batch_size}'
    )
    raise ValueError(msg)
  order = TrainingOrder(len(source), options.batch_size, seed)

  def example(position: int, generator: np.random.Generator) -> dict[str, Any]:
    corrupt = []
    for index in itertools.islice(order.at(position), _MOST_CORRUPT_IN_A_ROW):
      try:
        stored = source[index]
        image = transforms.training_image(
          stored.content, options.size, generator, options.max_pixels
        )
      except CorruptImage:
        corrupt.append(index)
        continue
      first = corrupt[0] if corrupt else -1
      return _example(image, stored.label, first, ids=np.int32(index))
    msg = (
      f'{source.where(corrupt[0])} and all its substitutes cannot be decoded; '
      f'check whether these are JPEG files'
    )
    raise ValueError(msg)

  # Generators are created before the slice, so the crop of an image does not
  # depend on the process.
  examples = grain.MapDataset.range(_POSITIONS).random_map(example, seed=seed)
  return Input(source, options, examples, say)


def evaluation_input(
  source: Source,
  options: InputOptions,
  *,
  say: Say,
  chosen: Sequence[int] | None = None,
) -> Input:
  """Returns the batches of one pass over images, all or some of them.

  A batch is `inputs` uint8 (B, size, size, 3), `labels` int32 (B,) and
  `is_example` bool (B,). Where that is false, pixels and label are 0.
  """
  options.process()
  padding = np.zeros((options.size, options.size, 3), np.uint8)
  indices = range(len(source)) if chosen is None else chosen

  def example(place: int) -> dict[str, Any]:
    if place >= len(indices):
      return _example(padding, 0, -1, is_example=np.bool_(False))
    try:
      stored = source[indices[place]]
      image = transforms.evaluation_image(
        stored.content, options.size, options.max_pixels
      )
    except CorruptImage:
      return _example(padding, 0, indices[place], is_example=np.bool_(False))
    return _example(image, stored.label, -1, is_example=np.bool_(True))

  steps = -(-len(indices) // options.batch_size)
  places = grain.MapDataset.range(steps * options.batch_size)
  return Input(source, options, places.map(example), say)


def _example(
  image: np.ndarray, label: int, corrupt: int, **more: Any
) -> dict[str, Any]:
  numbers = {'labels': np.int32(label), _CORRUPT: np.int64(corrupt)}
  return {'inputs': image, **numbers, **more}
