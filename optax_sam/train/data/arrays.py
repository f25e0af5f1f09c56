"""Datasets of arrays: own ones in Python, and those of files, checked."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Batch = dict[str, np.ndarray]

INPUT_KEYS = ('inputs', 'x', 'image', 'images', 'features', 'tokens')
TARGET_KEYS = ('labels', 'targets', 'y', 'label', 'target')
# Of a part of a file, as float32.
_MOST_BYTES = 2**34
# An iterable without an end must not fill the memory.
_MOST_ITERABLE_BYTES = 2**32
_MOST_EXAMPLES = 2**22


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
  """Arrays of a part, as they were read.

  Attributes:
    name: 'train', 'test' or 'validation'.
    inputs: the inputs, one row per example.
    targets: the targets; those of `next_token` are not read.
    names: names of both for messages.
  """

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
  - a dict of two arrays, with a key of `INPUT_KEYS` and one of `TARGET_KEYS`;
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
      inputs, targets = _inputs_and_targets(name, part, loss == 'next_token')
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
    loss: name of the loss: `cross_entropy`, `mean_squared_error` or
      `next_token`, for which the targets are the inputs.
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
  what = 'token' if is_token else 'label'
  for part in parts:
    most = int(batches[part.name]['labels'].max())
    if most >= count:
      msg = (
        f'{part.names[not is_token]} has the {what} {most}, outside of 0 to '
        f'{count - 1}, the {what}s of the training part'
      )
      raise ValueError(msg)
  if classes is None and not is_token:
    _check_classes(parts[0].names[1], labels)
  return Dataset(classes=count, **batches)


def check_size(where: str, shape: Sequence[int], itemsize: int = 1) -> None:
  """Raises a ValueError if an array is too large to be held in memory.

  Args:
    where: name of the array, for the error message.
    shape: its shape.
    itemsize: bytes of an entry in the file.
  """
  count = math.prod(shape)
  if min(shape, default=1) < 0 or count * max(4, itemsize) > _MOST_BYTES:
    msg = (
      f'{where} of shape {tuple(shape)} is too large: at most '
      f'{_MOST_BYTES >> 30} GiB as float32; use fewer or smaller examples'
    )
    raise ValueError(msg)


def _inputs_and_targets(name: str, given: Any, is_single: bool) -> Any:
  """Returns two values that are array-like; the targets may be None."""
  if isinstance(given, Mapping):
    return _of_mapping(name, given, is_single)
  if isinstance(given, tuple):
    if len(given) == 2:
      return given
    msg = f'{name} must be a pair (inputs, targets), not {len(given)} values'
    raise ValueError(msg)
  if hasattr(given, 'shape') and hasattr(given, 'dtype'):
    if is_single:
      return given, None
    msg = (
      f'{name} is an array without targets; give a pair (inputs, targets), or '
      f"loss='next_token' for tokens"
    )
    raise ValueError(msg)
  if not isinstance(given, Iterable) and not hasattr(given, '__getitem__'):
    msg = (
      f'{name} must be a pair (inputs, targets), a dict of arrays or an '
      f'iterable of examples, not {type(given).__name__}'
    )
    raise ValueError(msg)
  return _of_examples(name, given, is_single)


def _of_mapping(name: str, given: Mapping[str, Any], is_single: bool) -> Any:
  found = []
  for keys in (INPUT_KEYS, TARGET_KEYS):
    own = [key for key in keys if key in given]
    if len(own) == 1 or (keys is TARGET_KEYS and is_single):
      found.append(given[own[0]] if own else None)
      continue
    msg = (
      f'{name} must have one of the keys {", ".join(keys)}, not '
      f'{", ".join(map(str, own or given)) or "none"}'
    )
    raise ValueError(msg)
  return found


def _of_examples(name: str, given: Any, is_single: bool) -> Any:
  inputs, targets, size = [], [], 0
  too_many = (
    f'{name} has more than {_MOST_EXAMPLES:,} examples, more than '
    f'{_MOST_ITERABLE_BYTES >> 30} GiB or no end, and is read into memory; '
    f'give fewer examples, without repeat()'
  )
  # Of a Grain dataset that repeats without an end: the largest integer.
  if hasattr(given, '__len__') and len(given) > _MOST_EXAMPLES:
    raise ValueError(too_many)
  for example in given:
    if isinstance(example, Mapping):
      one = _of_mapping(name, example, is_single)
    elif isinstance(example, tuple | list) and len(example) == 2:
      one = example
    elif is_single:
      one = example, None
    else:
      msg = (
        f'{name}: an example must be a pair (input, target) or a dict, not '
        f'{type(example).__name__}'
      )
      raise ValueError(msg)
    inputs.append(np.asarray(one[0]))
    targets.append(0 if one[1] is None else np.asarray(one[1]))
    size += inputs[-1].nbytes
    if size > _MOST_ITERABLE_BYTES or len(inputs) > _MOST_EXAMPLES:
      raise ValueError(too_many)
  return inputs, targets


def _batches(
  parts: Sequence[Part], loss: str | None, *, is_own: bool
) -> dict[str, Batch]:
  """Returns converted arrays of all parts, of equal shapes and dtypes."""
  batches = {}
  first: Any = None
  for part in parts:
    (x, y), is_tokens = part.names, loss == 'next_token'
    inputs = _numbers(x, part.inputs, axes=1 if is_own else 2)
    if is_tokens:
      tokens = _integers(x, inputs, 'tokens', None if is_own else 2)
      batches[part.name] = {'inputs': tokens, 'labels': tokens}
      targets = inputs
    else:
      targets = _numbers(y, part.targets, axes=1)
      if len(inputs) != len(targets):
        msg = (
          f'{x} has {len(inputs)} examples and {y.rpartition(": ")[2]} has {len(targets)}; give '
          f'both the same number'
        )
        raise ValueError(msg)
      batches[part.name] = {
        'inputs': _converted_inputs(x, inputs, is_own),
        'labels': _converted_targets(y, targets, loss, is_own),
      }
    first = first or (part, inputs, targets)
    for key, name, other, one, its in (
      ('inputs', x, first[0].names[0], inputs, first[1]),
      ('labels', y, first[0].names[1], targets, first[2]),
    ):
      if one.shape[1:] != its.shape[1:]:
        msg = (
          f'{name} and {other} have examples of the shapes {one.shape[1:]} and '
          f'{its.shape[1:]}; give all parts the same shape'
        )
        raise ValueError(msg)
      dtypes = {batches[p.name][key].dtype for p in (part, first[0])}
      is_bytes = {x.dtype == np.uint8 for x in (one, its)}
      if len(dtypes) > 1 or (key == 'inputs' and len(is_bytes) > 1):
        msg = (
          f'{name} and {other} have the dtypes {one.dtype} and {its.dtype}; '
          f'give all parts numbers of the same dtype'
        )
        raise ValueError(msg)
  return batches


def _converted_inputs(name: str, values: np.ndarray, is_own: bool) -> Any:
  if values.dtype == np.uint8:
    floats = values.astype(np.float32)
    floats /= 255
    return floats[..., None] if floats.ndim == 3 and not is_own else floats
  if is_own and values.dtype.kind in 'iu':
    return _integers(name, values, 'inputs', None)
  return _floats(name, values)


def _converted_targets(
  name: str, values: np.ndarray, loss: str | None, is_own: bool
) -> np.ndarray:
  if loss == 'cross_entropy' or (loss is None and values.dtype.kind in 'biu'):
    return _integers(name, values, 'labels', None if is_own else 1)
  targets = _floats(name, values)
  return targets if is_own or targets.ndim > 1 else targets[:, None]


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
    msg = (
      f'{name} has the shape {array.shape} and needs at least one example'
      f'{" and two axes" if axes > 1 else ""}'
    )
    if 0 < array.ndim < axes:
      msg += f': {name.rpartition(": ")[2]}[:, None]'
    raise ValueError(msg)
  return array


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
    advice = f'{what} have the shape (examples, positions)'
    if what == 'labels':
      advice = 'labels have 1 axis'
      if values.ndim == 2:
        advice += (
          f': {short}[:, 0]'
          if values.shape[1] == 1
          else f': {short}.argmax(1) if they are one-hot'
        )
    msg = f'{name} has the shape {values.shape}; {advice}'
    raise ValueError(msg)
  least, most = int(values.min()), int(values.max())
  if least < (0 if axes else -(2**31)) or most >= 2**31:
    usual = '0, 1, 2, ...' if axes else 'integers that fit in int32'
    msg = f'{name} contains {least if least < 0 else most}; {what} are {usual}'
    raise ValueError(msg)
  return values.astype(np.int32)


def _check_classes(name: str, labels: np.ndarray) -> None:
  """Raises a ValueError unless training labels look like 0, 1, 2, ..."""
  least, most = int(labels.min()), int(labels.max())
  if least == most:
    msg = (
      f'{name} has one class only; give at least two, or --loss '
      f'mean_squared_error for numbers'
    )
    raise ValueError(msg)
  if least > 0 or most >= len(labels):
    msg = (
      f'{name} has {len(labels)} labels from {least} to {most}; number the '
      f'classes 0, 1, 2, ... without gaps'
    )
    raise ValueError(msg)
