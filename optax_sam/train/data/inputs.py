"""The data of a run: their interface, and datasets in memory."""

import abc
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from optax_sam.train.data import datasets

Batch = datasets.Batch


class Inputs(abc.ABC):
  """Batches for training, for evaluation and for measuring.

  A training batch is a function of step and seed. So a checkpoint stores only
  the step, and the settings that determine the order. Each process loads its
  own rows of a training batch, and of test batches with `is_example`; any other
  batch is the same on every process. `batch_size` is over all processes.
  """

  classes: int
  batch_size: int
  train_examples: int
  test_examples: int

  @property
  def skipped(self) -> int:
    """Number of examples that could not be read."""
    return 0

  def sample(self) -> Batch:
    """Returns an example batch with the shapes of a training batch."""
    return self.batch(0, 0)

  @abc.abstractmethod
  def batch(self, step: int, seed: int, *, ids: bool = False) -> Batch:
    """Returns this process's rows of a step; consecutive steps are fastest.

    With `ids`, the batch includes the `ids` of its examples, int32 (B,):
    numbers from 0, the same in every epoch.
    """

  def normalize(self, values: Any) -> Any:
    """Converts `inputs` to model inputs, inside the compiled step."""
    return values

  @abc.abstractmethod
  def test(self) -> Iterable[Batch]:
    """Returns one batch of all test examples, or batches with `is_example`.

    This is bool, and false for padding.
    """

  def train(self) -> Batch | None:
    """Returns all training examples, None if they are too many."""
    return None

  @abc.abstractmethod
  def fixed(self, count: int) -> Batch:
    """Returns `count` training examples, the same at every call."""

  def close(self) -> None:  # noqa: B027 (nothing to stop by default)
    """Stops prefetching."""


class InMemory(Inputs):
  """A dataset in memory, evaluated in one batch.

  Runs may hold out a fraction of the training examples. The seed of a run
  chooses them, and its batches exclude them; `train` and `fixed` include them.
  """

  def __init__(
    self,
    dataset: datasets.Dataset,
    batch_size: int,
    process: tuple[int, int] | None = None,
    held_out: float = 0.0,
  ) -> None:
    """Stores the dataset, which every process has."""
    self._process = process
    self._fraction = held_out
    self._parts: tuple[int, Batch, Batch] | None = None  # for the latest seed
    self.dataset = dataset
    self.classes = dataset.classes
    self.batch_size = batch_size
    self.train_examples = len(self._split(0)[0]['labels'])
    self.test_examples = len(dataset.test['labels'])

  def batch(self, step: int, seed: int, *, ids: bool = False) -> Batch:
    """Returns this process's rows of the batch of a step."""
    epoch, position = divmod(step, self.train_examples // self.batch_size)
    index, count = process(self._process)
    rows = self.batch_size // count
    start = position * self.batch_size + rows * index
    order = datasets.order(self.train_examples, seed, epoch)
    chosen = order[start : start + rows]
    train, _ = self._split(seed)
    batch = {name: values[chosen] for name, values in train.items()}
    return batch | {'ids': chosen.astype(np.int32)} if ids else batch

  def test(self) -> list[Batch]:
    """Returns the test part as one batch."""
    return [self.dataset.test]

  def train(self) -> Batch:
    """Returns the training part."""
    return self.dataset.train

  def held_out(self, seed: int) -> Batch | None:
    """Returns the examples that the run with this seed holds out."""
    return self._split(seed)[1] or None

  def with_held_out(self, fraction: float) -> 'InMemory':
    """Returns the same data for runs that hold out a fraction of it."""
    return InMemory(self.dataset, self.batch_size, self._process, fraction)

  def fixed(self, count: int) -> Batch:
    """Returns the first training examples."""
    train = self.dataset.train
    return {name: values[:count] for name, values in train.items()}

  def _split(self, seed: int) -> tuple[Batch, Batch]:
    """Returns what the run with this seed trains on, and what it holds out."""
    if not self._fraction:
      return self.dataset.train, {}
    parts = self._parts  # another thread may replace it
    if parts is None or parts[0] != seed:
      split = datasets.hold_out(self.dataset.train, self._fraction, seed)
      self._parts = parts = (seed, *split)
    return parts[1:]


def process(given: tuple[int, int] | None) -> tuple[int, int]:
  """Returns index of this process and number of processes, by default JAX's."""
  return given or (jax.process_index(), jax.process_count())


def check_count(flag: str, count: int, examples: int, which: str = '') -> None:
  """Raises a ValueError if a flag asks for too many training examples."""
  if count > examples:
    msg = (
      f'--{flag} must be at most {examples}, the number of training '
      f'examples{which}, not {count}'
    )
    raise ValueError(msg)


def steps_per_epoch(inputs: Inputs) -> int:
  """Returns the number of full batches in an epoch."""
  return max(1, inputs.train_examples // inputs.batch_size)
