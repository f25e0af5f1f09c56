"""Datasets by name or path, and the order of their batches."""

import dataclasses
import functools
import os
import pathlib
import random
from collections.abc import Callable

import numpy as np

from optax_sam.train.config import configs
from optax_sam.train.data import cifar, idx, npz
from optax_sam.train.data.arrays import Batch, Dataset, Part, dataset_of

__all__ = ['Batch', 'Dataset', 'batch_at', 'hold_out', 'load', 'of_config']

# Fixes the split, the generated data and the wrong labels: every run of every
# method uses the same dataset, for any seed.
_DATA_SEED = 0
_DIGITS_TEST_EXAMPLES = 797

# Named datasets in files.
ON_DISK = ('fashion_mnist', 'cifar10', 'cifar100')
NAMES = ('digits', 'mnist1d', *ON_DISK)
VARIABLE = 'OPTAX_SAM_DATA'
_SYSTEM = pathlib.Path('/usr/share/datasets')
_FASHION_MNIST = (
  'install it (Debian, Ubuntu: apt install dataset-fashion-mnist), or get the '
  'four files train-images-idx3-ubyte.gz ... from '
  'https://github.com/zalandoresearch/fashion-mnist'
)


def load(
  name: str,
  *,
  label_noise: float = 0.0,
  data_dir: pathlib.Path | None = None,
  train_examples: int | None = None,
  resize: int | None = None,
  max_pixels: int = 2**26,
  loss: str = 'cross_entropy',
) -> Dataset:
  """Loads a dataset, the same at every call.

  Args:
    name: one of `NAMES`, or the path of an .npz file, of a directory of IDX or
      CIFAR files, or of a folder of images.
    label_noise: fraction of the training labels replaced by another class,
      which is drawn uniformly. The test part keeps its labels.
    data_dir: directory with the files of a named dataset; None searches for it.
    train_examples: number of training examples to use: the first ones, with the
      same fraction of every class; None for all.
    resize: height and width to which the images of a folder are resized.
    max_pixels: larger images of a folder are refused.
    loss: name of the loss, which says what the targets are.

  Raises:
    ValueError: if it doesn't exist, can't be read or has invalid examples.
  """
  if name in NAMES:
    for flag, given in (('--resize', resize), ('--loss', loss)):
      if given not in (None, 'cross_entropy'):
        msg = f'{flag} {given} is not for --dataset {name}; leave it out'
        raise ValueError(msg)
  if name in _MADE:
    dataset = _MADE[name]()
  else:
    path = _find(name, data_dir) if name in ON_DISK else pathlib.Path(name)
    classes = cifar.CLASSES.get(name)
    try:
      parts = (
        cifar.read(path, classes)
        if classes
        else _parts_at(path, resize, max_pixels, loss)
      )
      dataset = dataset_of(parts, loss=loss, classes=classes)
    except (OSError, MemoryError) as error:
      reason = getattr(error, 'strerror', None) or error or 'not enough memory'
      msg = f'--dataset {path} cannot be read: {reason}'
      raise ValueError(msg) from None
  if train_examples is not None:
    train = _first(dataset.train, train_examples, loss, name)
    dataset = dataclasses.replace(dataset, train=train)
  if not label_noise:
    return dataset
  labels = _with_noise(dataset.train['labels'], dataset.classes, label_noise)
  return dataclasses.replace(dataset, train={**dataset.train, 'labels': labels})


def of_config(config: configs.Experiment) -> Dataset:
  """Returns the dataset of a configuration."""
  return load(
    config.dataset,
    label_noise=config.label_noise,
    data_dir=config.data_dir,
    train_examples=config.train_examples,
    resize=config.resize,
    max_pixels=config.max_pixels,
    loss=config.loss,
  )


def _find(name: str, data_dir: pathlib.Path | None) -> pathlib.Path:
  """Returns the directory with the files of a named dataset.

  Raises:
    ValueError: if they are nowhere; says how to get them.
  """
  if name == 'fashion_mnist':
    folders, advice = ['fashion-mnist', name], _FASHION_MNIST
    has_files: Callable[[pathlib.Path], object] = idx.is_directory
  else:
    classes = cifar.CLASSES[name]
    stem = f'cifar-{classes}'
    endings = ('batches-bin', 'binary', 'batches-py', 'python')
    folders = [*(f'{stem}-{ending}' for ending in endings), name]
    advice = (
      f'get and unpack {stem}-binary.tar.gz or {stem}-python.tar.gz from '
      f'https://www.cs.toronto.edu/~kriz/cifar.html'
    )
    has_files = lambda path: cifar.ending(path, classes) is not None
  given = os.environ.get(VARIABLE)
  places = [_SYSTEM] if data_dir is None else [data_dir]
  if data_dir is None and given:
    places.insert(0, pathlib.Path(given))
  for directory in (x / y for x in places for y in ('', *folders)):
    if directory.is_dir() and has_files(directory):
      return directory
  msg = (
    f'--dataset {name} is not in {" and ".join(map(str, places))}; {advice}, '
    f'and give its directory by --data-dir or ${VARIABLE}'
  )
  raise ValueError(msg)


def _parts_at(
  path: pathlib.Path, resize: int | None, max_pixels: int, loss: str
) -> list[Part]:
  """Reads the file or directory that a user names."""
  if not path.exists():
    msg = (
      f'--dataset {path} does not exist; give one of {", ".join(NAMES)}, or a '
      f'path'
    )
    raise ValueError(msg)
  is_folder = path.is_dir() and (path / 'train').is_dir()
  if resize is not None and not is_folder:
    msg = f'--resize is for a folder of images; {path} is none; leave it out'
    raise ValueError(msg)
  if is_folder:
    try:
      from optax_sam.train.data import image_folder
    except ModuleNotFoundError:
      msg = "a folder of images needs Pillow: pip install 'optax-sam[imagenet]'"
      raise ValueError(msg) from None
    return image_folder.read(path, resize, max_pixels)
  if path.is_dir():
    for classes in cifar.CLASSES.values():
      if cifar.ending(path, classes) is not None:
        return cifar.read(path, classes)
    if idx.is_directory(path):
      return idx.read(path)
    msg = (
      f'--dataset {path} has neither IDX files (train-images-idx3-ubyte), nor '
      f'CIFAR files (data_batch_1.bin), nor train/CLASS/*.png'
    )
    raise ValueError(msg)
  if path.suffix != '.npz' or not path.is_file():
    msg = (
      f'--dataset {path} must be an .npz file with x_train, y_train, x_test, '
      f'y_test, or a directory'
    )
    raise ValueError(msg)
  return npz.read(path, has_targets=loss != 'next_token')


def _first(train: Batch, count: int, loss: str, name: str) -> Batch:
  """Returns the first training examples, with the fractions of all classes."""
  labels = train['labels']
  is_class = loss == 'cross_entropy'
  _, numbers, sizes = np.unique(
    labels if is_class else np.zeros(len(labels), int),
    return_inverse=True,
    return_counts=True,
  )
  if not len(sizes) <= count <= len(labels):
    msg = (
      f'--train-examples must be at most {len(labels)}, the number of training '
      f'examples of {name}, and at least one for each class, not {count}'
    )
    raise ValueError(msg)
  # The fraction of its class that comes before an example.
  before = np.empty(len(labels))
  before[np.argsort(numbers, kind='stable')] = np.concatenate(
    [np.arange(size) / size for size in sizes]
  )
  chosen = np.sort(np.argsort(before, kind='stable')[:count])
  return {key: values[chosen] for key, values in train.items()}


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

  Labels that are not integers, or more than one per example, are no classes;
  then the choice is among all examples. The number of examples that are held
  out is the same for all seeds. Both parts have their original order.
  """
  labels = train['labels']
  if labels.ndim > 1 or labels.dtype.kind == 'f':  # no classes
    labels = np.zeros(len(labels), int)
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
  train_x, test_x, train_y, test_y = train_test_split(
    images.reshape(-1, 8, 8, 1).astype(np.float32) / 16,
    labels,
    test_size=_DIGITS_TEST_EXAMPLES,
    stratify=labels,
    random_state=_DATA_SEED,
  )
  return Dataset(_batch(train_x, train_y), _batch(test_x, test_y), classes=10)


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
  return Dataset(
    _batch(made['x'][..., None], made['y']),
    _batch(made['x_test'][..., None], made['y_test']),
    classes=10,
  )


def _batch(inputs: np.ndarray, labels: np.ndarray) -> Batch:
  return {
    'inputs': inputs.astype(np.float32),
    'labels': labels.astype(np.int32),
  }


# Datasets that are generated or ship with a package.
_MADE: dict[str, Callable[[], Dataset]] = {
  'digits': _digits,
  'mnist1d': _mnist1d,
}
