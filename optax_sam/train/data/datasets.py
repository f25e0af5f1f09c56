"""Datasets and the order of their batches."""

import dataclasses
import functools
import random
from collections.abc import Callable

import numpy as np

# Fixes the split, the generated data and the wrong labels: every run of every
# method uses the same dataset, for any seed.
_DATA_SEED = 0
_DIGITS_TEST_EXAMPLES = 797

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Training and test examples.

  Attributes:
    train: `inputs` (examples, ...) and `labels`, the targets: classes
      (examples,), or others.
    test: the same for the test part.
    classes: number of classes, 0 for other targets.
    validation: a part for the choice of settings, None for none.
  """

  train: Batch
  test: Batch
  classes: int
  validation: Batch | None = None


def load(name: str, *, label_noise: float = 0.0) -> Dataset:
  """Loads a dataset, with symmetric label noise in its training part.

  Args:
    name: `digits` or `mnist1d`.
    label_noise: fraction of the training labels replaced by another class,
      which is drawn uniformly. The test part keeps its labels.

  Returns:
    The dataset, the same at every call.
  """
  if name not in _LOADERS:
    msg = f'dataset {name!r} is unknown; choose one of {", ".join(_LOADERS)}'
    raise ValueError(msg)
  dataset = _LOADERS[name]()
  labels = _with_noise(dataset.train['labels'], dataset.classes, label_noise)
  return dataclasses.replace(dataset, train={**dataset.train, 'labels': labels})


def batch_at(train: Batch, step: int, batch_size: int, seed: int) -> Batch:
  """Returns the batch of one step.

  A pure function of its arguments, so the step determines the position in the
  data. Each epoch has a different order; examples that don't fill a batch are
  left out of that epoch.
  """
  examples = len(train['labels'])
  epoch, position = divmod(step, examples // batch_size)
  order = _order(examples, seed, epoch)
  chosen = order[position * batch_size : (position + 1) * batch_size]
  return {name: values[chosen] for name, values in train.items()}


def hold_out(train: Batch, fraction: float, seed: int) -> tuple[Batch, Batch]:
  """Splits training examples, with the same fraction of every class.

  Args:
    train: the examples. Labels that are not integers, or more than one per
      example, are no classes; then the choice is among all examples.
    fraction: of each class that is held out, rounded to whole examples, so that
      their number is the same for all seeds.
    seed: seed of the choice.

  Returns:
    The remaining examples and the held-out ones, in their original order.
  """
  labels = train['labels']
  if labels.ndim > 1 or labels.dtype.kind == 'f':
    labels = np.zeros(len(labels), int)  # no classes to have fractions of
  # A third number keeps this seed apart from those of the epochs.
  generator = np.random.default_rng((seed, 0, 1))
  is_held_out = np.zeros(len(labels), bool)
  for label in np.unique(labels):
    of_class = generator.permutation(np.flatnonzero(labels == label))
    is_held_out[of_class[: round(fraction * len(of_class))]] = True
  left = {name: values[~is_held_out] for name, values in train.items()}
  return left, {name: values[is_held_out] for name, values in train.items()}


@functools.lru_cache(maxsize=4)
def _order(examples: int, seed: int, epoch: int) -> np.ndarray:
  return np.random.default_rng((seed, epoch)).permutation(examples)


def _with_noise(
  labels: np.ndarray, classes: int, fraction: float
) -> np.ndarray:
  generator = np.random.default_rng(_DATA_SEED)
  wrong = generator.permutation(len(labels))[: round(fraction * len(labels))]
  shift = generator.integers(1, classes, len(wrong))
  labels = labels.copy()
  labels[wrong] = (labels[wrong] + shift) % classes
  return labels


def _digits() -> Dataset:
  from sklearn.datasets import load_digits
  from sklearn.model_selection import train_test_split

  images, labels = map(np.asarray, load_digits(return_X_y=True))
  inputs = images.reshape(-1, 8, 8, 1).astype(np.float32) / 16
  train_inputs, test_inputs, train_labels, test_labels = train_test_split(
    inputs,
    labels.astype(np.int32),
    test_size=_DIGITS_TEST_EXAMPLES,
    stratify=labels,
    random_state=_DATA_SEED,
  )
  return Dataset(
    train={'inputs': train_inputs, 'labels': train_labels},
    test={'inputs': test_inputs, 'labels': test_labels},
    classes=10,
  )


def _mnist1d() -> Dataset:
  # make_dataset computes the examples; get_dataset would download them. It
  # seeds the global generators of Python and NumPy, so they are restored.
  from mnist1d.data import get_dataset_args, make_dataset

  python_state, numpy_state = random.getstate(), np.random.get_state()
  try:
    made = make_dataset(get_dataset_args())
  finally:
    random.setstate(python_state)
    np.random.set_state(numpy_state)

  def part(inputs: np.ndarray, labels: np.ndarray) -> Batch:
    return {
      'inputs': inputs[..., None].astype(np.float32),
      'labels': labels.astype(np.int32),
    }

  return Dataset(
    train=part(made['x'], made['y']),
    test=part(made['x_test'], made['y_test']),
    classes=10,
  )


_LOADERS: dict[str, Callable[[], Dataset]] = {
  'digits': _digits,
  'mnist1d': _mnist1d,
}
