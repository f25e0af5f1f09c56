"""The interface of a run's data, and datasets in memory."""

from collections.abc import Iterable
from typing import Any, Protocol

import jax
import numpy as np

from optax_sam.train.data import datasets

Batch = datasets.Batch


class Inputs(Protocol):
  """Batches for training, for evaluation and for measuring.

  A training batch is a function of step and seed. So a checkpoint stores only
  the step, and the settings that determine the order. Each process loads its
  own rows of a training batch, and of test batches with `is_example`; any other
  batch is the same on every process.

  Attributes:
    classes: number of classes.
    batch_size: examples in a step, over all processes.
    train_examples: number of examples that a run trains on.
    test_examples: number of test examples.
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

  def batch(self, step: int, seed: int, *, ids: bool = False) -> Batch:
    """Returns the rows of a step; consecutive steps are fastest.

    With `ids`, the batch includes the `ids` of its examples, int32 (B,):
    numbers from 0, the same in every epoch.
    """

  def normalize(self, values: Any) -> Any:
    """Converts `inputs` to model inputs, inside the compiled step."""
    return values

  def test(self) -> Iterable[Batch]:
    """Returns the test examples, once.

    Either one batch of all, or batches with `is_example`, bool, which is false
    for padding.
    """

  def train(self) -> Batch | None:
    """Returns all training examples, None if they are too many."""
    return None

  def held_out(self, seed: int) -> Batch | None:  # noqa: ARG002
    """Returns the training examples that a run doesn't train on, if any."""
    return None

  def fixed(self, count: int) -> Batch:
    """Returns `count` training examples, the same at every call."""

  def close(self) -> None:
    """Stops prefetching."""


class InMemory(Inputs):
  """A dataset in memory, evaluated in one batch.

  Every process has all of it, and takes its own rows of each batch.

  If runs hold out training examples, the seed of a run chooses them, and its
  batches exclude them. `train` and `fixed` include all training examples.
  """

  def __init__(
    self,
    dataset: datasets.Dataset,
    batch_size: int,
    process: tuple[int, int] | None = None,
    held_out: float = 0.0,
  ) -> None:
    """Stores the dataset.

    Args:
      dataset: its examples.
      batch_size: examples in a step, over all processes.
      process: index of this process and number of processes; None for JAX's.
      held_out: fraction of the training examples that a run holds out.
    """
    self._process = process
    self._fraction = held_out
    self._parts: tuple[int, Batch, Batch] | None = None  # for the latest seed
    self.dataset = dataset
    self.classes = dataset.classes
    self.batch_size = batch_size
    self.train_examples = len(self._split(0)[0]['labels'])
    self.test_examples = len(dataset.test['labels'])

  def sample(self) -> Batch:
    """Returns the first batch."""
    return self.batch(0, 0)

  def batch(self, step: int, seed: int, *, ids: bool = False) -> Batch:
    """Returns this process's rows of the batch of a step."""
    train, _ = self._split(seed)
    if ids:
      train = {**train, 'ids': np.arange(self.train_examples, dtype=np.int32)}
    batch = datasets.batch_at(train, step, self.batch_size, seed)
    index, count = self._process or (jax.process_index(), jax.process_count())
    rows = self.batch_size // count
    mine = slice(rows * index, rows * (index + 1))
    return {name: values[mine] for name, values in batch.items()}

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

  def close(self) -> None:
    """Does nothing."""

  def _split(self, seed: int) -> tuple[Batch, Batch]:
    """Returns what the run with this seed trains on, and what it holds out."""
    if not self._fraction:
      return self.dataset.train, {}
    parts = self._parts  # another thread may replace it
    if parts is None or parts[0] != seed:
      split = datasets.hold_out(self.dataset.train, self._fraction, seed)
      self._parts = parts = (seed, *split)
    return parts[1:]


def steps_per_epoch(inputs: Inputs) -> int:
  """Returns the number of full batches in an epoch."""
  return max(1, inputs.train_examples // inputs.batch_size)
