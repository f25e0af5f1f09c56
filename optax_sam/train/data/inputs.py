"""The data that a run steps through, wherever the examples are."""

from collections.abc import Iterable
from typing import Any, Protocol

import jax
import numpy as np

from optax_sam.train.data import datasets

Batch = datasets.Batch
State = dict[str, int]


class Inputs(Protocol):
  """Batches for training, for evaluation and for measuring.

  A training batch is a function of step and seed, so the step is all that a
  checkpoint has to know; beside it stands what the order depends on. Of one
  every process makes its own rows, and so of test batches with `is_example`;
  any other batch is the same on every process.

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
    """Examples that were met and could not be read."""
    ...

  def sample(self) -> Batch:
    """Returns rows of the shape of those of a training batch."""
    ...

  def batch(self, step: int, seed: int, *, ids: bool = False) -> Batch:
    """Returns the rows of a step; those after the last ones come fastest.

    If asked for them, with the `ids` of its examples, int32 (B,): from 0 on,
    the same ones in every epoch.
    """
    ...

  def normalize(self, values: Any) -> jax.Array:
    """Makes of `inputs` what a model takes, inside the compiled step."""
    ...

  def test(self) -> Iterable[Batch]:
    """Returns the test examples, once.

    Either one batch of all, or batches with `is_example`, bool: false where a
    row only fills its batch up.
    """
    ...

  def train(self) -> Batch | None:
    """Returns all training examples, None if they are too many for that."""
    ...

  def held_out(self, seed: int) -> Batch | None:
    """Returns the training examples that a run doesn't train on, if any."""
    ...

  def fixed(self, count: int) -> Batch:
    """Returns training examples that are the same ones at every call."""
    ...

  def close(self) -> None:
    """Stops whatever makes batches ahead."""
    ...


class InMemory:
  """A dataset that is small enough to be held and evaluated as a whole.

  Every process holds all of it, and takes its rows of each batch.

  If runs hold training examples out, the seed of each chooses them, and its
  batches have none of them. `train` and `fixed` are of all training examples.
  """

  def __init__(
    self,
    dataset: datasets.Dataset,
    batch_size: int,
    process: tuple[int, int] | None = None,
    held_out: float = 0.0,
  ) -> None:
    """Holds the dataset.

    Args:
      dataset: its examples.
      batch_size: examples in a step, over all processes.
      process: index of this process and number of processes; None for JAX's.
      held_out: share of the training examples that a run doesn't train on.
    """
    self._process = process
    self._share = held_out
    self._parts: tuple[int, Batch, Batch] | None = None  # of the latest seed
    self.dataset = dataset
    self.classes = dataset.classes
    self.batch_size = batch_size
    self.train_examples = len(self._trained_on(0)['labels'])
    self.test_examples = len(dataset.test['labels'])

  @property
  def skipped(self) -> int:
    """None: all of them could be read."""
    return 0

  def sample(self) -> Batch:
    """Returns the first batch."""
    return self.batch(0, 0)

  def batch(self, step: int, seed: int, *, ids: bool = False) -> Batch:
    """Returns this process's rows of the batch of a step."""
    train = self._trained_on(seed)
    if ids:
      train = {**train, 'ids': np.arange(self.train_examples, dtype=np.int32)}
    batch = datasets.batch_at(train, step, self.batch_size, seed)
    index, count = self._process or (jax.process_index(), jax.process_count())
    rows = self.batch_size // count
    start = rows * index
    return {
      name: values[start : start + rows] for name, values in batch.items()
    }

  def normalize(self, values: Any) -> Any:
    """Returns them as they are: the dataset is normalized already."""
    return values

  def test(self) -> list[Batch]:
    """Returns the test part as one batch."""
    return [self.dataset.test]

  def train(self) -> Batch:
    """Returns the training part."""
    return self.dataset.train

  def held_out(self, seed: int) -> Batch | None:
    """Returns what the run of this seed holds out."""
    return self._split(seed)[1] if self._share else None

  def holding_out(self, share: float) -> 'InMemory':
    """Returns the same data for runs that don't train on a share of it."""
    return InMemory(self.dataset, self.batch_size, self._process, share)

  def fixed(self, count: int) -> Batch:
    """Returns the first training examples."""
    train = self.dataset.train
    return {name: values[:count] for name, values in train.items()}

  def close(self) -> None:
    """Does nothing."""

  def _trained_on(self, seed: int) -> Batch:
    return self._split(seed)[0] if self._share else self.dataset.train

  def _split(self, seed: int) -> tuple[Batch, Batch]:
    if self._parts is None or self._parts[0] != seed:
      parts = datasets.hold_out(self.dataset.train, self._share, seed)
      self._parts = (seed, *parts)
    return self._parts[1:]


def steps_per_epoch(inputs: Inputs) -> int:
  """Returns the steps in which every example is shown once.

  Those that don't fill a batch are left out.
  """
  return max(1, inputs.train_examples // inputs.batch_size)


def state(inputs: Inputs, step: int, seed: int) -> State:
  """Returns where a run is in its data, ready for JSON.

  Args:
    inputs: the data.
    step: steps taken.
    seed: of the order.
  """
  return {
    'step': step,
    'examples': inputs.train_examples,
    'batch_size': inputs.batch_size,
    'seed': seed,
  }


def check_state(inputs: Inputs, former: State, step: int, seed: int) -> None:
  """Raises a ValueError if a run would go on with other data.

  Args:
    inputs: the data now.
    former: from `state`; empty in checkpoints that don't have one.
    step: steps that the run has taken.
    seed: of the order now.
  """
  now = state(inputs, step, seed)
  for name, value in former.items():
    if now.get(name) != value:
      msg = (
        f'--resume with other data: {name} was {value} and is now '
        f'{now.get(name)}; use the data of the earlier run'
      )
      raise ValueError(msg)
