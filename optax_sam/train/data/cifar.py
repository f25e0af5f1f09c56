"""CIFAR-10 and CIFAR-100, in their binary and in their Python version."""

import io
import pathlib
import pickle
from typing import Any

import numpy as np

from optax_sam.train.data.arrays import Part, readable

CLASSES = {'cifar10': 10, 'cifar100': 100}
_PIXELS = 3 * 32 * 32
# By number of classes: files of the training part and of the test part.
_BATCHES = [f'data_batch_{number}' for number in range(1, 6)]
_FILES = {10: (_BATCHES, 'test_batch'), 100: (['train'], 'test')}
_LABELS = {10: 'labels', 100: 'fine_labels'}
_MOST_BYTES = 2**29


def ending(directory: pathlib.Path, classes: int) -> str | None:
  """Returns the ending of the files of one version, None if there are none."""
  first = _FILES[classes][0][0]
  found = (x for x in ('.bin', '') if (directory / f'{first}{x}').is_file())
  return next(found, None)


def read(directory: pathlib.Path, classes: int) -> list[Part]:
  """Reads the images and the (fine) labels."""
  train, test = _FILES[classes]
  suffix = ending(directory, classes) or ''
  read_one = _binary if suffix else _python
  parts = []
  for part, names in (('train', train), ('test', [test])):
    images, labels = [], []
    for name in names:
      path = directory / f'{name}{suffix}'
      with readable(path):
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
          msg = 'it is missing, or too large for a file of CIFAR'
          raise ValueError(msg)
        pixels, own = read_one(path.read_bytes(), classes)
        if own.size and not 0 <= own.min() <= own.max() < classes:
          wrong = own.min() if own.min() < 0 else own.max()
          msg = f'it has the label {wrong}, outside of 0 to {classes - 1}'
          raise ValueError(msg)
      images.append(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
      labels.append(own)
    where = (f'{directory}: {part} images', f'{directory}: {part} labels')
    arrays = np.concatenate(images), np.concatenate(labels)
    parts.append(Part(part, arrays[0], arrays[1], where))
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
  found = load_plain(content)
  named = {
    key.decode('latin1') if isinstance(key, bytes) else key: value
    for key, value in (found.items() if isinstance(found, dict) else ())
  }
  images, labels = named.get('data'), named.get(_LABELS[classes])
  if (
    not isinstance(images, np.ndarray)
    or images.shape != (len(images), _PIXELS)
    or not isinstance(labels, list)
    or len(labels) != len(images)
    or not all(type(label) is int for label in labels)
  ):
    msg = (
      f"it has no 'data' of shape (images, {_PIXELS}), or no list "
      f'{_LABELS[classes]!r} of as many integers'
    )
    raise ValueError(msg)
  return images, np.asarray(labels, np.int32)


def load_plain(content: bytes) -> Any:
  """Reads a pickle of dicts, lists, text, numbers and arrays of uint8.

  No code of the pickle can run: the only names that it may import are those
  that a pickled array needs, and functions of this module replace them. Raises
  any error if the pickle is damaged or has other objects.
  """
  return _finished(_Reader(io.BytesIO(content), encoding='bytes').load(), 0)


class _Array:
  """The state of a pickled array or dtype."""

  def __init__(self, *arguments: Any) -> None:
    self.arguments = arguments
    self.state: Any = None

  def __setstate__(self, state: Any) -> None:
    self.state = state


# The version in Python: its table of objects cannot be made to fill the memory.
class _Reader(pickle._Unpickler):  # noqa: SLF001
  def find_class(self, module: str, name: str) -> Any:
    # New functions at each call, because a pickle may set their attributes.
    def array(*arguments: Any) -> _Array:
      return _Array(*arguments)

    def encode(text: Any, encoding: Any) -> bytes:
      if encoding not in ('latin1', b'latin1'):
        msg = 'it contains text of another encoding'
        raise pickle.UnpicklingError(msg)
      return text.encode('latin1')

    allowed: dict[str, Any] = {
      'numpy.dtype': array,
      'numpy.ndarray': lambda *_: None,
      'numpy.core.multiarray._reconstruct': array,
      'numpy._core.multiarray._reconstruct': array,
      '_codecs.encode': encode,
    }
    full = f'{module}.{name}'
    if full not in allowed:
      msg = f'it contains {full}, and only plain data are read'
      raise pickle.UnpicklingError(msg)
    return allowed[full]


def _finished(value: Any, depth: int) -> Any:
  """Replaces states of arrays by arrays of uint8."""
  if depth > 4:
    msg = 'it is nested too deeply'
    raise pickle.UnpicklingError(msg)
  if isinstance(value, dict):
    return {key: _finished(x, depth + 1) for key, x in value.items()}
  if isinstance(value, list):
    return [_finished(x, depth + 1) for x in value]
  if not isinstance(value, _Array):
    return value
  _, shape, dtype, is_fortran, content = value.state
  if dtype.arguments[0] not in ('u1', b'u1') or not isinstance(content, bytes):
    msg = 'it contains an array that is not of uint8'
    raise pickle.UnpicklingError(msg)
  order = 'F' if is_fortran else 'C'
  return np.frombuffer(content, np.uint8).reshape(shape, order=order)
