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
  parts = []
  for name, part in (
    ('train', train),
    ('test', test),
    ('validation', validation),
  ):
    if part is not None or name != 'validation':
      x, y = examples.inputs_and_targets(name, part, loss == 'next_token')
      parts.append(Part(name, x, y, (f'{name}: inputs', f'{name}: targets')))
  return Dataset(classes=0, **_batches(parts, loss))


def dataset_of(
  parts: Sequence[Part],
  *,
  loss: str = 'cross_entropy',
  classes: int | None = None,
) -> Dataset:
  """Returns a dataset of the parts of files, checked.

  As `dataset`, but inputs become float32, images of bytes of shape (examples,
  height, width) get an axis of channels, and so do targets of one number.

  Args:
    parts: training and test part, and possibly a validation part.
    loss: `cross_entropy`, `mean_squared_error` or `next_token`.
    classes: number of classes; None for that of the training labels.

  Raises:
    ValueError: if the examples are not valid or don't fit each other.
  """
  batches = _batches([_of_file(part, loss) for part in parts], loss)
  labels = batches['train']['labels']
  if loss == 'mean_squared_error':
    return Dataset(classes=math.prod(labels.shape[1:]), **batches)
  least, count = int(labels.min()), int(labels.max()) + 1
  name = parts[0].names[1]
  if loss == 'cross_entropy' and classes is None and least == count - 1:
    msg = (
      f'{name} has one class only; give at least two, or --loss '
      f'mean_squared_error for numbers'
    )
    raise ValueError(msg)
  is_sparse = loss == 'cross_entropy' and (least > 0 or count > len(labels))
  if least < 0 or (classes is None and is_sparse):
    msg = (
      f'{name} has {len(labels)} numbers from {least} to {count - 1}; number '
      f'the classes 0, 1, 2, ... without gaps'
    )
    raise ValueError(msg)
  return Dataset(classes=classes or count, **batches)


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
def readable(where: Any, advice: str = '') -> Generator[None]:
  """Raises a ValueError in one line: damaged files raise almost anything."""
  try:
    yield
  except Exception as error:  # noqa: BLE001
    reason = getattr(error, 'strerror', None) or str(error).split('\n')[0]
    msg = f'{where} cannot be read: {reason[:300] or type(error).__name__}'
    raise ValueError(f'{msg}; {advice}' if advice else msg) from None


def _of_file(part: Part, loss: str) -> Part:
  """Returns a part with the axes and dtypes that files may lack."""
  inputs, targets = part.inputs, part.targets
  axes, what = (1, 'labels') if loss == 'cross_entropy' else (2, 'tokens')
  if loss != 'mean_squared_error' and targets.ndim != axes:
    msg = (
      f'{part.names[1]} has the shape {targets.shape}; {what} have {axes} axes'
    )
    if what == 'labels' and targets.ndim == 2:
      msg += ': argmax(1) of them if they are one-hot, else [:, 0]'
    raise ValueError(msg)
  if loss == 'mean_squared_error' and targets.ndim == 1:
    targets = targets[:, None]
  if loss != 'next_token':
    if inputs.ndim == 1:
      msg = f'{part.names[0]} has one axis, and needs two: write x[:, None]'
      raise ValueError(msg)
    if inputs.dtype == np.uint8 and inputs.ndim == 3:
      inputs = inputs[..., None]
    elif inputs.dtype.kind in 'iu' and inputs.dtype != np.uint8:
      inputs = inputs.astype(np.float32)
  return part._replace(inputs=inputs, targets=targets)


def _batches(parts: Sequence[Part], loss: str | None) -> dict[str, Batch]:
  """Returns converted arrays of all parts, of equal shapes and dtypes."""
  batches: dict[str, Batch] = {}
  first: dict[str, tuple[Any, str]] = {}
  for part in parts:
    batch: Batch = {}
    values = {'inputs': part.inputs, 'labels': part.targets}
    if loss == 'next_token':
      del values['labels']
    for key, name in zip(values, part.names, strict=False):
      array = _numbers(name, values[key])
      batch[key] = _converted(name, array, key, loss)
      # Bytes in one part only would not be scaled alike.
      found = (
        array.shape[1:],
        (array if key == 'inputs' else batch[key]).dtype.kind,
      )
      text = f'{name} has examples of shape {found[0]} and dtype {array.dtype}'
      expected, other = first.setdefault(key, (found, text))
      if found != expected:
        msg = f'{text}, and {other}; give all parts the same shape and dtype'
        raise ValueError(msg)
    lengths = [len(array) for array in batch.values()]
    if lengths[0] != lengths[-1]:
      msg = (
        f'{part.names[0]} has {lengths[0]} examples and {part.names[1]} has '
        f'{lengths[1]}; give both the same number'
      )
      raise ValueError(msg)
    batches[part.name] = {'labels': batch['inputs']} | batch
  return batches


def _numbers(name: str, values: Any) -> np.ndarray:
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
  if array.ndim < 1 or not all(array.shape):
    msg = f'{name} has the shape {array.shape} and needs at least one example'
    raise ValueError(msg)
  return array


def _converted(
  name: str, values: np.ndarray, key: str, loss: str | None
) -> np.ndarray:
  """Returns inputs or targets as float32 or int32."""
  kind, what = values.dtype.kind, 'tokens' if loss == 'next_token' else key
  if what == 'inputs' and values.dtype == np.uint8:
    floats = values.astype(np.float32)
    floats /= 255
    return floats
  if (
    what == 'tokens'
    or (what == 'inputs' and kind in 'iu')
    or (what == 'labels' and loss == 'cross_entropy')
    or (what == 'labels' and loss is None and kind in 'biu')
  ):
    return _integers(name, values, what)
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


def _integers(name: str, values: np.ndarray, what: str) -> np.ndarray:
  if values.dtype.kind == 'f':
    msg = (
      f'{name} has the dtype {values.dtype}; {what} are integers: '
      f"{name.rpartition(': ')[2]}.astype('int32')"
    )
    if what == 'labels':
      msg += ', or give --loss mean_squared_error for numbers'
    raise ValueError(msg)
  least, most = int(values.min()), int(values.max())
  if least < -(2**31) or most >= 2**31:
    wrong = least if least < 0 else most
    msg = f'{name} contains {wrong}; {what} are integers that fit in int32'
    raise ValueError(msg)
  return values.astype(np.int32)
