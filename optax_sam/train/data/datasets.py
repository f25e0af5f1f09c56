"""Datasets by name or path, and the order of their batches."""

import dataclasses
import functools
import pathlib
import random

import numpy as np

from optax_sam.train.data import array_files, cifar
from optax_sam.train.data.arrays import Batch, Dataset, Parts, dataset_of

__all__ = ['Batch', 'Dataset', 'hold_out', 'load', 'order']

# Fixes the split, the generated data and the wrong labels: every run of every
# method uses the same dataset, for any seed.
_DATA_SEED = 0
_DIGITS_TEST_EXAMPLES = 797

# Named datasets in files: their directories, and how to get them.
_CIFAR = (
  'get and unpack {0}-binary.tar.gz or {0}-python.tar.gz from '
  'https://www.cs.toronto.edu/~kriz/cifar.html'
)
_FILES = {
  'fashion_mnist': (
    'fashion[-_]mnist',
    'install it (Debian, Ubuntu: apt install dataset-fashion-mnist)',
  ),
  'cifar10': ('cifar*', _CIFAR.format('cifar-10')),
  'cifar100': ('cifar*', _CIFAR.format('cifar-100')),
}
ON_DISK = tuple(_FILES)
NAMES = ('digits', 'mnist1d', *ON_DISK)
_SYSTEM = pathlib.Path('/usr/share/datasets')


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
  """Loads a dataset by name or path, the same at every call.

  For the arguments see the flags of `Data`; the loss says what the targets are.
  """
  if name in NAMES and loss != 'cross_entropy':
    msg = f'--loss {loss} is not for --dataset {name}; leave it out'
    raise ValueError(msg)
  path = _find(name, data_dir) if name in ON_DISK else pathlib.Path(name)
  try:
    kind = name if name in NAMES else _kind(path)
    if resize is not None and kind != 'folder':
      msg = '--resize is for a folder of images only; leave it out'
      raise ValueError(msg)  # noqa: TRY301 (reported below, with the path)
    parts = _read(kind, path, resize, max_pixels, loss)
    dataset = dataset_of(parts, loss, cifar.CLASSES.get(name))
  except (OSError, MemoryError, ValueError) as error:
    reason = getattr(error, 'strerror', None) or str(error) or 'out of memory'
    msg = f'--dataset {path}: {reason}'
    raise ValueError(msg) from None
  train = dataset.train
  if train_examples is not None:
    train = _first(train, train_examples, loss, name)
  if label_noise:
    generator = np.random.default_rng(_DATA_SEED)
    examples = len(train['labels'])
    wrong = generator.permutation(examples)[: round(label_noise * examples)]
    shift = generator.integers(1, dataset.classes, len(wrong))
    labels = train['labels'].copy()
    labels[wrong] = (labels[wrong] + shift) % dataset.classes
    train = {**train, 'labels': labels}
  return dataclasses.replace(dataset, train=train)


def _kind(path: pathlib.Path) -> str:
  """Returns what a path contains, by names of files; '' for anything else."""
  if not path.is_dir():
    return 'npz' if path.suffix == '.npz' and path.is_file() else ''
  if (path / 'train').is_dir():
    return 'folder'
  for name, classes in cifar.CLASSES.items():
    if cifar.ending(path, classes) is not None:
      return name
  return 'idx' if array_files.idx_files(path, 'train', 'images') else ''


def _find(name: str, data_dir: pathlib.Path | None) -> pathlib.Path:
  """Returns the directory with the files of a named dataset."""
  pattern, advice = _FILES[name]
  place = data_dir or _SYSTEM
  for directory in (place, *sorted(place.glob(pattern))):
    if _kind(directory) == ('idx' if name == 'fashion_mnist' else name):
      return directory
  msg = (
    f'--dataset {name} is not in {place}; {advice}, and give its directory by '
    f'--data-dir'
  )
  raise ValueError(msg)


def _read(
  kind: str,
  path: pathlib.Path,
  resize: int | None,
  max_pixels: int,
  loss: str,
) -> Parts:
  """Reads the file or directory of a dataset."""
  match kind:
    case 'digits':
      return _digits()
    case 'mnist1d':
      return _mnist1d()
    case 'cifar10' | 'cifar100':
      return cifar.read(path, cifar.CLASSES[kind])
    case 'fashion_mnist' | 'idx':
      return array_files.read_idx(path)
    case 'npz':
      return array_files.read_npz(path, has_targets=loss != 'next_token')
    case 'folder':
      try:
        from optax_sam.train.data import image_files
      except ModuleNotFoundError:
        msg = "images need Pillow: pip install 'optax-sam[imagenet]'"
        raise ValueError(msg) from None
      return image_files.read_folder(path, resize, max_pixels)
  is_there = 'has no data' if path.exists() else 'does not exist'
  msg = (
    f'it {is_there}; give one of {", ".join(NAMES)}, an .npz file, or a '
    f'directory of IDX files (train-images-idx3-ubyte), CIFAR files '
    f'(data_batch_1.bin) or train/CLASS/*.png'
  )
  raise ValueError(msg)


def _first(train: Batch, count: int, loss: str, name: str) -> Batch:
  """Returns the first training examples, with the fractions of all classes."""
  labels = train['labels']
  if loss != 'cross_entropy':
    labels = np.zeros(len(labels), int)
  classes = np.unique(labels)
  if not len(classes) <= count <= len(labels):
    msg = (
      f'--train-examples must be at most {len(labels)}, the number of training '
      f'examples of {name}, and at least one for each class, not {count}'
    )
    raise ValueError(msg)
  # The fraction of its class that comes before an example.
  before = np.empty(len(labels))
  for label in classes:
    rows = np.flatnonzero(labels == label)
    before[rows] = np.arange(len(rows)) / len(rows)
  chosen = np.sort(np.argsort(before, kind='stable')[:count])
  return {key: values[chosen] for key, values in train.items()}


@functools.lru_cache(maxsize=4)
def order(examples: int, seed: int, epoch: int) -> np.ndarray:
  """Returns the order of all examples in an epoch."""
  return np.random.default_rng((seed, epoch)).permutation(examples)


def hold_out(train: Batch, fraction: float, seed: int) -> tuple[Batch, Batch]:
  """Splits training examples, with the same fraction of every class.

  Labels that are not integers, or more than one per example, are no classes;
  then the choice is among all examples. The number of examples that are held
  out is the same for all seeds. Both parts have their original order.
  """
  labels = train['labels']
  if labels.ndim > 1 or labels.dtype.kind == 'f':  # no classes
    labels = np.zeros(len(labels), int)
  # The third number distinguishes this seed from those of the epochs.
  generator = np.random.default_rng((seed, 0, 1))
  is_held_out = np.zeros(len(labels), bool)
  for label in np.unique(labels):
    of_class = generator.permutation(np.flatnonzero(labels == label))
    is_held_out[of_class[: round(fraction * len(of_class))]] = True
  left = {name: values[~is_held_out] for name, values in train.items()}
  return left, {name: values[is_held_out] for name, values in train.items()}


def _digits() -> Parts:
  from sklearn.datasets import load_digits
  from sklearn.model_selection import train_test_split

  images, labels = load_digits(return_X_y=True)
  train_x, test_x, train_y, test_y = train_test_split(
    np.reshape(images, (-1, 8, 8, 1)) / 16.0,
    labels,
    test_size=_DIGITS_TEST_EXAMPLES,
    stratify=labels,
    random_state=_DATA_SEED,
  )
  return {'train': (train_x, train_y), 'test': (test_x, test_y)}


def _mnist1d() -> Parts:
  # make_dataset computes the examples; get_dataset would download them. It
  # seeds the global generators of Python and NumPy, so they are restored.
  from mnist1d.data import get_dataset_args, make_dataset

  python_state, numpy_state = random.getstate(), np.random.get_state()
  try:
    made = make_dataset(get_dataset_args())
  finally:
    random.setstate(python_state)
    np.random.set_state(numpy_state)
  return {
    'train': (made['x'][..., None], made['y']),
    'test': (made['x_test'][..., None], made['y_test']),
  }
