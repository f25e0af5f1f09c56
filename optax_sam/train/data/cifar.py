"""CIFAR-10 and CIFAR-100, in their binary and in their Python version."""

import io
import pathlib
import pickle
from typing import Any

import numpy as np

from optax_sam.train.data.arrays import Parts, readable

CLASSES = {'cifar10': 10, 'cifar100': 100}
_PIXELS = 3 * 32 * 32
# By number of classes: files of the training part and of the test part.
_BATCHES = [f'data_batch_{number}' for number in range(1, 6)]
_FILES = {10: (_BATCHES, ['test_batch']), 100: (['train'], ['test'])}
_LABELS = {10: 'labels', 100: 'fine_labels'}
_MOST_BYTES = 2**29


def ending(directory: pathlib.Path, classes: int) -> str | None:
  """Returns the ending of the files of one version, None if there are none."""
  first = _FILES[classes][0][0]
  found = (x for x in ('.bin', '') if (directory / f'{first}{x}').is_file())
  return next(found, None)


def read(directory: pathlib.Path, classes: int) -> Parts:
  """Reads the images and the (fine) labels."""
  suffix = ending(directory, classes) or ''
  read_one = _binary if suffix else _python
  parts = {}
  for part, names in zip(('train', 'test'), _FILES[classes], strict=True):
    found = []
    for name in names:
      path = directory / f'{name}{suffix}'
      with readable(path.name):
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
          msg = 'it is missing, or too large for a file of CIFAR'
          raise ValueError(msg)
        images, labels = read_one(path.read_bytes(), classes)
        if labels.size and not 0 <= labels.min() <= labels.max() < classes:
          msg = f'it has a label outside of 0 to {classes - 1}'
          raise ValueError(msg)
        found.append((images.reshape(-1, 3, 32, 32), labels))
    images, labels = map(np.concatenate, zip(*found, strict=True))
    parts[part] = images.transpose(0, 2, 3, 1), labels
  return parts


def _binary(content: bytes, classes: int) -> tuple[np.ndarray, np.ndarray]:
  # CIFAR-100 has a coarse label before the fine one.
  before = 1 if classes == 10 else 2
  size = before + _PIXELS
  if not content or len(content) % size:
    msg = (
      f'it is truncated: {len(content)} bytes are not a multiple of {size}, a '
      f'label and an image; get the file again'
    )
    raise ValueError(msg)
  rows = np.frombuffer(content, np.uint8).reshape(-1, size)
  return rows[:, before:], rows[:, before - 1].astype(np.int32)


def _python(content: bytes, classes: int) -> tuple[np.ndarray, np.ndarray]:
  """Reads a pickle of which no code can run."""
  found = _Reader(io.BytesIO(content), encoding='bytes').load()
  named = found if isinstance(found, dict) else {}
  images, labels = (
    named.get(key.encode(), named.get(key))
    for key in ('data', _LABELS[classes])
  )
  if not isinstance(labels, list) or {*map(type, labels)} != {int}:
    msg = f'it has no list {_LABELS[classes]!r} of integers'
    raise ValueError(msg)
  if not isinstance(images, _Array):
    msg = "it has no array 'data'"
    raise ValueError(msg)
  _, _, dtype, is_fortran, pixels = images.state
  if dtype.arguments[0] not in ('u1', b'u1') or not isinstance(pixels, bytes):
    msg = "its 'data' are not of uint8"
    raise ValueError(msg)
  shape, order = (len(labels), _PIXELS), 'F' if is_fortran else 'C'
  array = np.frombuffer(pixels, np.uint8).reshape(shape, order=order)
  return array, np.asarray(labels, np.int32)


class _Array:
  """The arguments and the state of a pickled array or dtype."""

  def __init__(self, *arguments: Any) -> None:
    self.arguments = arguments
    self.state: Any = None

  def __setstate__(self, state: Any) -> None:
    self.state = state


# The version in Python: its table of objects cannot be made to fill the memory.
class _Reader(pickle._Unpickler):  # noqa: SLF001
  """Imports only the names that a pickled array needs, and replaces them."""

  def find_class(self, module: str, name: str) -> Any:
    # New functions at each call, because a pickle may set their attributes.
    def array(*arguments: Any) -> _Array:
      return _Array(*arguments)

    def encode(text: str, encoding: Any) -> bytes:
      if encoding not in ('latin1', b'latin1'):
        msg = 'it contains text of another encoding'
        raise pickle.UnpicklingError(msg)
      return text.encode('latin1')

    allowed: dict[str, Any] = {
      'numpy.dtype': array,
      'numpy.ndarray': None,
      'numpy.core.multiarray._reconstruct': array,
      'numpy._core.multiarray._reconstruct': array,
      '_codecs.encode': encode,
    }
    full = f'{module}.{name}'
    if full not in allowed:
      msg = f'it contains {full}, and only plain data are read'
      raise pickle.UnpicklingError(msg)
    return allowed[full]
