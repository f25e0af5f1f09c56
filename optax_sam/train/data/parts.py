"""Parts of a dataset: checked and converted."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Batch = dict[str, np.ndarray]

# Of a part, as float32.
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
  """Arrays of a part, as they were read.

  Attributes:
    inputs: the inputs, one row per example.
    targets: the targets.
    name: 'train', 'test' or 'validation'.
    names: names of the two arrays, for error messages.
  """

  inputs: np.ndarray
  targets: np.ndarray
  name: str
  names: tuple[str, str]


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


def dataset_of(
  source: str,
  parts: Sequence[Part],
  *,
  loss: str = 'cross_entropy',
  classes: int | None = None,
) -> Dataset:
  """Returns a dataset of checked parts.

  Inputs become float32; uint8 is divided by 255, and images of shape (examples,
  height, width) get an axis of channels. Tokens become int32.

  Args:
    source: path, for error messages.
    parts: training and test part, and possibly a validation part.
    loss: name of the loss: `cross_entropy`, `mean_squared_error` or
      `next_token`, for which the targets are the inputs.
    classes: number of classes; None for that of the training labels.

  Raises:
    ValueError: if the examples are not valid or don't fit each other.
  """
  for part in parts:
    _check(source, part, parts[0])
  batches = {part.name: _converted(source, part, loss) for part in parts}
  if loss == 'mean_squared_error':
    count = math.prod(batches['train']['labels'].shape[1:])
  else:
    count = classes or int(batches['train']['labels'].max()) + 1
    _check_labels(source, parts, batches, count, loss)
    if classes is None and loss == 'cross_entropy':
      _check_classes(source, parts[0].names[1], batches['train']['labels'])
  return Dataset(classes=count, **batches)


def _check(source: str, part: Part, first: Part) -> None:
  x, y = part.names
  inputs, targets = part.inputs, part.targets
  if inputs.ndim < 2 or not all(inputs.shape):
    msg = (
      f'{source}: {x} has the shape {inputs.shape} and needs at least one '
      f'example and two axes'
    )
    if inputs.ndim == 1:
      msg += f': {x}[:, None]'
    raise ValueError(msg)
  if len(inputs) != len(targets) or not targets.ndim:
    msg = (
      f'{source}: {x} has {len(inputs)} examples and {y} has '
      f'{len(targets) if targets.ndim else "none"}; give both the same number'
    )
    raise ValueError(msg)
  for name, one, other in (
    (f'{x} and {first.names[0]}', inputs, first.inputs),
    (f'{y} and {first.names[1]}', targets, first.targets),
  ):
    if one.shape[1:] != other.shape[1:]:
      msg = (
        f'{source}: {name} have examples of the shapes {one.shape[1:]} and '
        f'{other.shape[1:]}; give all parts the same shape'
      )
      raise ValueError(msg)
  if inputs.dtype.kind not in 'biuf' or (
    (inputs.dtype == np.uint8) != (first.inputs.dtype == np.uint8)
  ):
    msg = (
      f'{source}: {x} has the dtype {inputs.dtype}; give all parts of the data '
      f'numbers of the same dtype'
    )
    raise ValueError(msg)


def _converted(source: str, part: Part, loss: str) -> Batch:
  x, y = part.names
  if loss == 'next_token':
    tokens = _integers(source, x, part.inputs, 'tokens', 2)
    return {'inputs': tokens, 'labels': tokens}
  inputs = _floats(source, x, part.inputs)
  if part.inputs.dtype == np.uint8:
    inputs /= 255
    if inputs.ndim == 3:
      inputs = inputs[..., None]
  if loss == 'cross_entropy':
    return {
      'inputs': inputs,
      'labels': _integers(source, y, part.targets, 'labels', 1),
    }
  targets = _floats(source, y, part.targets)
  if targets.ndim == 1:
    targets = targets[:, None]
  return {'inputs': inputs, 'labels': targets}


def _floats(source: str, name: str, values: np.ndarray) -> np.ndarray:
  """Returns finite values as float32."""
  if values.dtype.kind not in 'biuf':
    msg = f'{source}: {name} must be numbers, not {values.dtype}'
    raise ValueError(msg)
  with np.errstate(over='ignore'):
    floats = values.astype(np.float32)
  # `min` and `max` need no memory, unlike `isfinite` of all entries.
  if not (np.isfinite(floats.min()) and np.isfinite(floats.max())):
    rows = np.isfinite(floats.reshape(len(floats), -1)).all(axis=1)
    row = int(np.flatnonzero(~rows)[0])
    wrong = floats[row][~np.isfinite(floats[row])].flat[0]
    msg = (
      f'{source}: {name} contains {wrong} in example {row}; remove the example '
      f'or fill in the value'
    )
    raise ValueError(msg)
  return floats


def _integers(
  source: str, name: str, values: np.ndarray, what: str, ndim: int
) -> np.ndarray:
  """Returns labels or tokens as int32."""
  if values.dtype.kind not in 'biu':
    advice = f'{name}.astype(int)'
    if what == 'labels':
      advice += ', or give --loss mean_squared_error for numbers'
    msg = (
      f'{source}: {name} has the dtype {values.dtype}; {what} are integers: '
      f'{advice}'
    )
    raise ValueError(msg)
  if values.ndim != ndim:
    advice = f'{what} have {ndim} axis'
    if what == 'labels' and values.ndim == 2:
      advice += (
        f': {name}[:, 0]'
        if values.shape[1] == 1
        else (f': {name}.argmax(1) if they are one-hot')
      )
    else:
      advice = f'{what} have the shape (examples, positions)'
    msg = f'{source}: {name} has the shape {values.shape}; {advice}'
    raise ValueError(msg)
  if values.size and not 0 <= int(values.min()) <= int(values.max()) < 2**31:
    wrong = values.min() if values.min() < 0 else values.max()
    msg = f'{source}: {name} contains {wrong}; {what} are 0, 1, 2, ...'
    raise ValueError(msg)
  return values.astype(np.int32)


def _check_labels(
  source: str,
  parts: Sequence[Part],
  batches: dict[str, Batch],
  count: int,
  loss: str,
) -> None:
  what = 'token' if loss == 'next_token' else 'label'
  names = {
    part.name: part.names[0 if loss == 'next_token' else 1] for part in parts
  }
  for name, batch in batches.items():
    most = int(batch['labels'].max())
    if most >= count:
      msg = (
        f'{source}: {names[name]} has the {what} {most}, outside of 0 to '
        f'{count - 1}, the {what}s of the training part'
      )
      raise ValueError(msg)


def _check_classes(source: str, name: str, labels: np.ndarray) -> None:
  """Raises a ValueError unless training labels look like 0, 1, 2, ..."""
  least, most = int(labels.min()), int(labels.max())
  if least == most:
    msg = (
      f'{source}: {name} has one class only; give at least two, or --loss '
      f'mean_squared_error for numbers'
    )
    raise ValueError(msg)
  if least > 0 or most >= len(labels):
    msg = (
      f'{source}: {name} has {len(labels)} labels from {least} to {most}; '
      f'number the classes 0, 1, 2, ... without gaps'
    )
    raise ValueError(msg)
