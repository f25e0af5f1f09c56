"""Datasets of arrays: own ones in Python, and those of files, checked."""

import contextlib
import dataclasses
import math
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import numpy as np

from optax_sam.train.data import examples

Batch = dict[str, np.ndarray]

# As float32.
_MOST_BYTES = 2**34


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Training and test examples.

  Attributes:
    train: `inputs` (examples, ...; channels last) and `labels`: classes
      (examples,), or other targets.
    test: the same for the test part.
    classes: number of classes; for tokens, size of the vocabulary; for other
      targets, their number for an example.
    validation: a part for the choice of settings, if the dataset has one.
  """

  train: Batch
  test: Batch
  classes: int
  validation: Batch | None = None


class Part(NamedTuple):
  """Arrays of a part as they were read, and their names for messages."""

  name: str
  inputs: Any
  targets: Any
  names: tuple[str, str]


def dataset(
  train: Any, test: Any, validation: Any = None, *, loss: str | None = None
) -> Dataset:
  """Returns a dataset of own examples, checked.

  Each part is one of

  - a pair `(inputs, targets)` of arrays with the examples on the first axis;
  - a dict of two arrays, with a key such as `inputs`, `x` or `image`, and one
    such as `labels`, `targets` or `y`;
  - an array of tokens (examples, positions), for the loss `next_token`;
  - an iterable of finite length over examples, such as a Grain dataset. An
    example is a pair, a dict with these keys, or an array of tokens. All are
    read into memory.

  Floats become float32, integers int32, and bytes (uint8) in inputs are divided
  by 255, except for tokens.

  Args:
    train: training examples.
    test: test examples.
    validation: validation examples, None for none.
    loss: name of the loss; None for a function.

  Raises:
    ValueError: if a part is not valid, or differs from `train`; in one line.
  """
  given = {'train': train, 'test': test, 'validation': validation}
  parts = []
  for name, part in given.items():
    if part is not None or name != 'validation':
      inputs, targets = examples.inputs_and_targets(
        name, part, loss == 'next_token'
      )
      names = (f'{name}: inputs', f'{name}: targets')
      parts.append(Part(name, inputs, targets, names))
  return Dataset(classes=0, **_batches(parts, loss, is_own=True))


def dataset_of(
  parts: Sequence[Part],
  *,
  loss: str = 'cross_entropy',
  classes: int | None = None,
) -> Dataset:
  """Returns a dataset of checked parts of files.

  Inputs become float32; uint8 is divided by 255, and images of shape (examples,
  height, width) get an axis of channels. Tokens become int32.

  Args:
    parts: training and test part, and possibly a validation part.
    loss: `cross_entropy`, `mean_squared_error` or `next_token`.
    classes: number of classes; None for that of the training labels.

  Raises:
    ValueError: if the examples are not valid or don't fit each other.
  """
  batches = _batches(parts, loss, is_own=False)
  labels = batches['train']['labels']
  if loss == 'mean_squared_error':
    return Dataset(classes=math.prod(labels.shape[1:]), **batches)
  is_token = loss == 'next_token'
  count = classes or int(labels.max()) + 1
  for part in parts:
    most = int(batches[part.name]['labels'].max())
    if most >= count:
      what = 'token' if is_token else 'label'
      msg = (
        f'{part.names[not is_token]} has the {what} {most}, outside of 0 to '
        f'{count - 1}, the {what}s of the training part'
      )
      raise ValueError(msg)
  if classes is None and not is_token:
    name, least = parts[0].names[1], int(labels.min())
    if least == count - 1:
      msg = (
        f'{name} has one class only; give at least two, or --loss '
        f'mean_squared_error for numbers'
      )
      raise ValueError(msg)
    if least > 0 or count > len(labels):
      msg = (
        f'{name} has {len(labels)} labels from {least} to {count - 1}; number '
        f'the classes 0, 1, 2, ... without gaps'
      )
      raise ValueError(msg)
  return Dataset(classes=count, **batches)


def check_size(where: str, shape: Sequence[int], itemsize: int = 1) -> None:
  """Raises a ValueError if an array is too large to be held in memory."""
  if min(shape, default=1) < 0 or (
    math.prod(shape) * max(4, itemsize) > _MOST_BYTES
  ):
    msg = (
      f'{where} of shape {tuple(shape)} is too large: at most '
      f'{_MOST_BYTES >> 30} GiB as float32; use fewer or smaller examples'
    )
    raise ValueError(msg)


@contextlib.contextmanager
def readable(where: Any) -> Generator[None]:
  """Raises a ValueError in one line: damaged files raise almost anything."""
  try:
    yield
  except Exception as error:  # noqa: BLE001
    reason = getattr(error, 'strerror', None) or str(error).split('\n')[0]
    msg = f'{where} cannot be read: {reason or type(error).__name__}'
    raise ValueError(msg) from None


def _batches(
  parts: Sequence[Part], loss: str | None, *, is_own: bool
) -> dict[str, Batch]:
  """Returns converted arrays of all parts, of equal shapes and dtypes."""
  batches: dict[str, Batch] = {}
  first: dict[str, tuple[str, Any, str]] = {}
  for part in parts:
    batch: Batch = {}
    values = {'inputs': part.inputs, 'labels': part.targets}
    if loss == 'next_token':
      del values['labels']
    for key, name in zip(values, part.names, strict=False):
      axes = 1 if is_own or key == 'labels' else 2
      array = _numbers(name, values[key], axes)
      batch[key] = _converted(name, array, key, loss, is_own)
      # Bytes in one part only would not be scaled alike.
      kind = (array if key == 'inputs' else batch[key]).dtype.kind
      found = array.shape[1:], kind
      text = f'shape {array.shape[1:]} and dtype {array.dtype}'
      other, expected, its = first.setdefault(key, (name, found, text))
      if found != expected:
        msg = (
          f'{name} has examples of {text}, and {other} of {its}; give all '
          f'parts the same shape and dtype'
        )
        raise ValueError(msg)
    lengths = [len(array) for array in batch.values()]
    if lengths[0] != lengths[-1]:
      msg = (
        f'{part.names[0]} has {lengths[0]} examples and '
        f'{part.names[1].rpartition(": ")[2]} has {lengths[1]}; give both the '
        f'same number'
      )
      raise ValueError(msg)
    batches[part.name] = {'labels': batch['inputs']} | batch
  return batches


def _numbers(name: str, values: Any, axes: int) -> np.ndarray:
  """Returns an array of numbers with at least one example."""
  try:
    array = np.asarray(values)
  except ValueError as error:
    msg = f'{name} have different shapes; give all examples the same: {error}'
    raise ValueError(msg) from error
  if array.dtype.kind == 'V' and array.dtype.names is None:  # bfloat16
    array = array.astype(np.float32)
  if array.dtype.kind not in 'biuf':
    msg = (
      f'{name} has the dtype {array.dtype}, and must be numbers; convert them, '
      f"as in numpy.stack(values).astype('float32')"
    )
    raise ValueError(msg)
  if array.ndim < axes or not all(array.shape):
    msg = f'{name} has the shape {array.shape} and needs at least one example'
    if array.ndim == 1 < axes:
      msg += f' and two axes: {name.rpartition(": ")[2]}[:, None]'
    raise ValueError(msg)
  return array


def _converted(
  name: str, values: np.ndarray, key: str, loss: str | None, is_own: bool
) -> np.ndarray:
  """Returns inputs or targets as float32 or int32."""
  is_integer = values.dtype.kind in 'biu'
  if loss == 'next_token':
    return _integers(name, values, 'tokens', None if is_own else 2)
  if key == 'inputs':
    if values.dtype == np.uint8:
      floats = values.astype(np.float32)
      floats /= 255
      return floats[..., None] if floats.ndim == 3 and not is_own else floats
    if is_own and values.dtype.kind in 'iu':
      return _integers(name, values, 'inputs', None)
    return _floats(name, values)
  if loss == 'cross_entropy' or (loss is None and is_integer):
    return _integers(name, values, 'labels', None if is_own else 1)
  targets = _floats(name, values)
  return targets if is_own or targets.ndim > 1 else targets[:, None]


def _floats(name: str, values: np.ndarray) -> np.ndarray:
  """Returns finite values as float32."""
  with np.errstate(over='ignore'):
    floats = values.astype(np.float32)
  # `min` and `max` need no memory, unlike `isfinite` of all entries.
  if not (np.isfinite(floats.min()) and np.isfinite(floats.max())):
    is_bad = ~np.isfinite(floats.reshape(len(floats), -1)).all(axis=1)
    row = int(np.flatnonzero(is_bad)[0])
    wrong = floats[row][~np.isfinite(floats[row])].flat[0]
    msg = (
      f'{name} contains {wrong} in example {row}, and NaN or infinity in '
      f'{is_bad.sum()} of {len(floats)}; remove or replace them'
    )
    raise ValueError(msg)
  return floats


def _integers(
  name: str, values: np.ndarray, what: str, axes: int | None
) -> np.ndarray:
  """Returns values as int32; in files (with `axes`) at least 0."""
  short = name.rpartition(': ')[2]
  if values.dtype.kind == 'f':
    msg = (
      f'{name} has the dtype {values.dtype}; {what} are integers: '
      f"{short}.astype('int32')"
    )
    if what == 'labels':
      msg += ', or give --loss mean_squared_error for numbers'
    raise ValueError(msg)
  if axes not in (None, values.ndim):
    msg = f'{name} has the shape {values.shape}; {what} have {axes} axes'
    if what == 'labels' and values.ndim == 2:
      is_hot = values.shape[1] > 1
      msg += (
        f': {short}.argmax(1) if they are one-hot'
        if is_hot
        else (f': {short}[:, 0]')
      )
    raise ValueError(msg)
  least, most = int(values.min()), int(values.max())
  if least < (0 if axes else -(2**31)) or most >= 2**31:
    usual = '0, 1, 2, ...' if axes else 'integers that fit in int32'
    msg = f'{name} contains {least if least < 0 else most}; {what} are {usual}'
    raise ValueError(msg)
  return values.astype(np.int32)
