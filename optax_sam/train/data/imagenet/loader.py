"""Batches for training and evaluation; each process loads its own rows.

Training is one endless sequence of steps (`imagenet.order`). The images of a
step, their crops and their mirroring are a function of seed and step. So a
checkpoint stores only these, and a run may resume with another number of
processes. Process `i` of `n` loads the `i`-th of `n` equal parts of a step, so
even the order of the rows stays the same.

Evaluation yields every image once, in order. The last batch is padded, and
`is_example` is false for padding. So all processes have the same number of full
batches, and sums over them are exact.

The process that loads a corrupt image reports it once and counts it. In
evaluation `is_example` is false for it. A training batch must be full, and
corrupt images are not known in advance, so another image replaces it: see
`TrainingOrder.at`. `imagenet.convert` finds all corrupt images; shards contain
none.

Each thread of Grain makes a whole batch. So Grain's overhead per item occurs
once per batch, and hardly any of it in the training thread.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Self

import grain
import numpy as np

from optax_sam.train.data.imagenet.examples import (
  CORRUPT,
  EvaluationExample,
  TrainingExample,
)
from optax_sam.train.data.imagenet.order import TrainingOrder
from optax_sam.train.data.imagenet.sources import Source

Batch = dict[str, np.ndarray]
Say = Callable[[str], None]

# Steps are counted up to here, far beyond any run.
_POSITIONS = 2**62


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputOptions:
  """Options of the input pipeline.

  Attributes:
    batch_size: images in a batch, summed over all processes.
    size: height and width of the images in pixels.
    threads: batches that this process makes concurrently; by default one per
      available core.
    prefetch: batches that this process makes in advance, including unfinished
      ones; fewer than `threads` leave some threads idle. At size 224 a batch
      takes 150 kB per image.
    process_index: index of this process; that of JAX if None.
    process_count: number of processes; that of JAX if None.
  """

  batch_size: int
  size: int = 224
  threads: int = 16
  prefetch: int = 16
  process_index: int | None = None
  process_count: int | None = None

  def process(self) -> tuple[int, int]:
    """Returns the index of this process and the number of processes.

    Raises:
      ValueError: if an option is invalid.
    """
    for name in ('batch_size', 'size', 'threads', 'prefetch'):
      if getattr(self, name) < 1:
        msg = f'{name} must be at least 1, not {getattr(self, name)}'
        raise ValueError(msg)
    index, count = self.process_index, self.process_count
    if index is None or count is None:
      import jax

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


class TrainingInput:
  """An endless iterator over training batches.

  A batch is `inputs` uint8 (B, size, size, 3), `labels` int32 (B,) and `ids`
  int32 (B,), the indices of its images in the source, where B is `batch_size`
  divided by the number of processes.
  """

  def __init__(
    self, source: Source, options: InputOptions, *, seed: int, say: Say
  ) -> None:
    """Creates the input, positioned before the first step.

    Args:
      source: the training images.
      options: options of the input pipeline.
      seed: seed of order, crops and mirroring, at least 0.
      say: called with a message for every corrupt image.

    Raises:
      ValueError: if an option is invalid.
    """
    index, count = options.process()
    if seed < 0:
      msg = f'seed must be at least 0, not {seed}'
      raise ValueError(msg)
    if options.batch_size > len(source):
      msg = (
        f'batch_size must be at most the number of training images, '
        f'{len(source)}, not {options.batch_size}'
      )
      raise ValueError(msg)
    self._order = TrainingOrder(len(source), options.batch_size, seed)
    self._skipped = _Skipped(source, say)
    example = TrainingExample(source, self._order, options.size)
    # Generators are created before the slice, so the crop of an image does not
    # depend on the process.
    positions = grain.MapDataset.range(_POSITIONS)
    examples = positions.random_map(example, seed=seed)
    batches = examples.batch(options.batch_size // count)[index::count]
    self._batches = iter(batches.to_iter_dataset(_read_options(options)))

  @property
  def steps_per_epoch(self) -> int:
    """Steps in an epoch, the same on every process."""
    return self._order.steps_per_epoch

  @property
  def skipped(self) -> int:
    """Number of corrupt images that this process has loaded."""
    return self._skipped.count

  def __iter__(self) -> Self:
    """Returns itself."""
    return self

  def __next__(self) -> Batch:
    """Returns the batch of the next step."""
    return self._skipped.strip(next(self._batches))

  def get_state(self) -> dict[str, int]:
    """Returns the position, ready for JSON, the same on every process."""
    step = self._batches.get_state()['next_index']
    return {'step': step, **dataclasses.asdict(self._order)}

  def set_state(self, state: dict[str, int]) -> None:
    """Moves to the position of another input with the same images and seed.

    Args:
      state: result of `get_state` on any process.

    Raises:
      ValueError: if the order of the images differs.
    """
    for name, value in dataclasses.asdict(self._order).items():
      if state.get(name) != value:
        msg = (
          f'the input cannot resume: {name} is {value} and was '
          f'{state.get(name)}; use the images and settings of the earlier run'
        )
        raise ValueError(msg)
    self._batches.set_state({'next_index': state['step']})

  def close(self) -> None:
    """Stops making batches."""
    self._batches.close()

  def __enter__(self) -> Self:
    """Returns itself."""
    return self

  def __exit__(self, *error: object) -> None:
    """Stops making batches."""
    self.close()


class EvaluationInput:
  """The batches of evaluation, which can be iterated any number of times.

  A batch is `inputs` uint8 (B, size, size, 3), `labels` int32 (B,) and
  `is_example` bool (B,). Where that is false, pixels and label are 0.
  """

  def __init__(
    self, source: Source, options: InputOptions, *, say: Say
  ) -> None:
    """Prepares the batches without making any.

    Args:
      source: the validation images.
      options: options of the input pipeline.
      say: called with a message for every corrupt image.

    Raises:
      ValueError: if an option is invalid.
    """
    index, count = options.process()
    self._steps = -(-len(source) // options.batch_size)
    self._skipped = _Skipped(source, say)
    example = EvaluationExample(source, options.size)
    places = grain.MapDataset.range(self._steps * options.batch_size)
    rows = options.batch_size // count
    batches = places.map(example).batch(rows)[index::count]
    self._batches = batches.to_iter_dataset(_read_options(options))

  @property
  def skipped(self) -> int:
    """Number of corrupt images that this process has loaded."""
    return self._skipped.count

  def __len__(self) -> int:
    """Returns the number of batches, the same on every process."""
    return self._steps

  def __iter__(self) -> Iterator[Batch]:
    """Iterates over all batches from the start."""
    batches = iter(self._batches)
    try:
      yield from map(self._skipped.strip, batches)
    finally:
      batches.close()


class _Skipped:
  """Counts corrupt images, and reports each once.

  Batches carry the indices of their corrupt images, so threads share no state,
  and prefetched batches that are never used do not count.
  """

  def __init__(self, source: Source, say: Say) -> None:
    self._source = source
    self._say = say
    self._met: set[int] = set()

  @property
  def count(self) -> int:
    return len(self._met)

  def strip(self, batch: Any) -> Batch:
    found = batch.pop(CORRUPT)
    for index in found[found >= 0].tolist():
      if index not in self._met:
        self._met.add(index)
        self._say(
          f'{self._source.where(index)} cannot be decoded and is skipped '
          f'({self.count} so far); replace or remove it'
        )
    return batch


def _read_options(options: InputOptions) -> grain.ReadOptions:
  return grain.ReadOptions(
    num_threads=min(options.threads, options.prefetch),
    prefetch_buffer_size=options.prefetch,
  )
