"""Checked datasets of arrays, from Python or from files."""

import contextlib
import dataclasses
import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from optax_sam.train.config import errors

Batch = dict[str, np.ndarray]
# Inputs and targets of `train` and `test`, and possibly of `validation`.
Parts = dict[str, tuple[Any, Any]]

# As float32.
_MOST_BYTES = 2**34
_INPUTS = ('inputs', 'x', 'image', 'images', 'features', 'tokens')
_TARGETS = ('labels', 'targets', 'y', 'label', 'target')
# An iterable without an end must not fill the memory.
_MOST_ITERABLE_BYTES, _MOST_EXAMPLES = 2**32, 2**22


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Examples: `inputs` (examples, ...; channels last) and `labels`.

  `classes` is the number of classes; for tokens the size of the vocabulary; for
  other targets their number for an example.
  """

  train: Batch
  test: Batch
  classes: int
  validation: Batch | None = None


def dataset(
  train: Any, test: Any, validation: Any = None, *, loss: str | None = None
) -> Dataset:
  """Returns a checked dataset of examples of the user.

  Each part is one of

  - a pair `(inputs, targets)` of arrays with the examples on the first axis;
  - a dict of two arrays, with a key such as `inputs`, `x` or `image`, and one
    such as `labels`, `targets` or `y`;
  - an array of tokens (examples, positions), for the loss `next_token`;
  - an iterable of finite length over examples, such as a Grain dataset. An
    example is a pair, a dict with these keys, or an array of tokens. All are
    read into memory.

  Floats become float32, integers int32, and bytes (uint8) in inputs are divided
  by 255, except for tokens. `loss` is a name, or None for a function. Raises a
  ValueError if a part is not valid, or differs from `train`.
  """
  given = {'train': train, 'test': test}
  if validation is not None:
    given['validation'] = validation
  parts = {
    name: _inputs_and_targets(name, part, loss == 'next_token')
    for name, part in given.items()
  }
  return Dataset(classes=0, **_batches(parts, loss))


def dataset_of(parts: Parts, loss: str, classes: int | None) -> Dataset:
  """Returns a checked dataset of the arrays of files.

  Unlike `dataset`, it converts inputs to float32, and adds an axis to images of
  bytes of shape (examples, height, width) and to targets of one number. If
  `classes` is None, the training labels determine the number of classes.
  """
  given = {name: _of_file(name, *part, loss) for name, part in parts.items()}
  batches = _batches(given, loss)
  labels = batches['train']['labels']
  if loss == 'mean_squared_error':
    return Dataset(classes=math.prod(labels.shape[1:]), **batches)
  least, count = int(labels.min()), int(labels.max()) + 1
  is_guess = loss == 'cross_entropy' and classes is None
  if least < 0 or (is_guess and (least or not 1 < count <= len(labels))):
    msg = (
      f'train: targets has {len(labels)} numbers from {least} to {count - 1}; '
      f'number at least two classes 0, 1, 2, ... without gaps'
    )
    raise ValueError(msg)
  return Dataset(classes=classes or count, **batches)


def check_size(where: str, shape: Sequence[int], itemsize: int = 1) -> None:
  """Raises a ValueError if an array is too large to be held in memory."""
  if math.prod(shape) * max(4, itemsize) > _MOST_BYTES:
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
    reason = getattr(error, 'strerror', None) or errors.first_line(error)
    msg = f'{where} cannot be read: {reason[:300]}'
    raise ValueError(f'{msg}; {advice}' if advice else msg) from None


def _inputs_and_targets(name: str, given: Any, is_tokens: bool) -> Any:
  """Returns two values that are array-like; the targets may be None."""
  if isinstance(given, Mapping):
    return _of_mapping(name, given, is_tokens)
  if isinstance(given, tuple) and len(given) == 2:
    return given
  is_array = hasattr(given, 'shape') and hasattr(given, 'dtype')
  if is_array and is_tokens:
    return given, None
  can_iterate = isinstance(given, Iterable) or hasattr(given, '__getitem__')
  if is_array or isinstance(given, tuple) or not can_iterate:
    found = 'one array' if is_array else type(given).__name__
    msg = (
      f'{name} must be a pair (inputs, targets), a dict of arrays, an iterable '
      f"of examples, or for loss='next_token' an array of tokens, not {found}"
    )
    raise ValueError(msg)
  return _of_examples(name, given, is_tokens)


def _of_mapping(name: str, given: Mapping[str, Any], is_tokens: bool) -> Any:
  found = []
  for keys in (_INPUTS, _TARGETS):
    own = [key for key in keys if key in given]
    if len(own) != 1 and not (keys is _TARGETS and is_tokens):
      msg = (
        f'{name} must have one of the keys {", ".join(keys)}, not '
        f'{", ".join(map(str, own or given)) or "none"}'
      )
      raise ValueError(msg)
    found.append(given[own[0]] if own else None)
  return found


def _of_examples(name: str, given: Any, is_tokens: bool) -> Any:
  inputs, targets, size = [], [], 0
  # A Grain dataset that repeats without an end has the largest length.
  too_many = hasattr(given, '__len__') and len(given) > _MOST_EXAMPLES
  for example in () if too_many else given:
    one = (example, 0) if is_tokens else example
    if isinstance(example, Mapping):
      one = _of_mapping(name, example, is_tokens)
    elif not (isinstance(one, tuple | list) and len(one) == 2):
      msg = (
        f'{name}: an example must be a pair (input, target) or a dict, not '
        f'{type(example).__name__}'
      )
      raise ValueError(msg)
    inputs.append(np.asarray(one[0]))
    targets.append(one[1])
    size += inputs[-1].nbytes
    too_many = size > _MOST_ITERABLE_BYTES or len(inputs) > _MOST_EXAMPLES
    if too_many:
      break
  if too_many:
    msg = (
      f'{name} has more than {_MOST_EXAMPLES:,} examples or '
      f'{_MOST_ITERABLE_BYTES >> 30} GiB, or no end, and is read into memory; '
      f'give fewer examples, without repeat()'
    )
    raise ValueError(msg)
  return inputs, targets


def _of_file(name: str, inputs: Any, targets: Any, loss: str) -> Any:
  """Returns inputs and targets with the axes and dtypes that they may lack."""
  axes, what = (1, 'labels') if loss == 'cross_entropy' else (2, 'tokens')
  if loss != 'mean_squared_error' and targets.ndim != axes:
    msg = f'{name}: {what} of shape {targets.shape} must have {axes} axes'
    if what == 'labels' and targets.ndim == 2:
      msg += ': argmax(1) of them if they are one-hot, else [:, 0]'
    raise ValueError(msg)
  if loss == 'mean_squared_error' and targets.ndim == 1:
    targets = targets[:, None]
  if loss != 'next_token':
    if inputs.ndim == 1:
      msg = f'{name}: inputs have one axis, and need two: write x[:, None]'
      raise ValueError(msg)
    if inputs.dtype == np.uint8 and inputs.ndim == 3:
      inputs = inputs[..., None]
    elif inputs.dtype.kind in 'iu' and inputs.dtype != np.uint8:
      inputs = inputs.astype(np.float32)
  return inputs, targets


def _batches(parts: Parts, loss: str | None) -> dict[str, Batch]:
  """Returns converted arrays of all parts, of equal shapes and dtypes."""
  batches: dict[str, Batch] = {}
  first: dict[str, tuple[Any, str]] = {}
  for part, values in parts.items():
    batch: Batch = {}
    for key, value in zip(('inputs', 'labels'), values, strict=True):
      if key == 'labels' and loss == 'next_token':
        continue
      name = f'{part}: {"inputs" if key == "inputs" else "targets"}'
      what = 'tokens' if loss == 'next_token' else key
      array, batch[key] = _converted(name, value, what, loss)
      # Bytes in one part only would not be scaled alike.
      kind = (array if key == 'inputs' else batch[key]).dtype.kind
      text = f'{name} has examples of shape {array.shape[1:]}, {array.dtype}'
      found = array.shape[1:], kind
      expected, other = first.setdefault(key, (found, text))
      if found != expected:
        msg = f'{text}, and {other}; give all parts the same shape and dtype'
        raise ValueError(msg)
    lengths = [len(array) for array in batch.values()]
    if lengths[0] != lengths[-1]:
      msg = (
        f'{part}: inputs has {lengths[0]} examples and targets has '
        f'{lengths[1]}; give both the same number'
      )
      raise ValueError(msg)
    batches[part] = {'labels': batch['inputs']} | batch
  return batches


def _converted(
  name: str, values: Any, what: str, loss: str | None
) -> tuple[np.ndarray, np.ndarray]:
  """Returns inputs, labels or tokens as an array, and as float32 or int32."""
  try:
    array = np.asarray(values)
  except ValueError as error:
    msg = f'{name} have different shapes; give all examples the same: {error}'
    raise ValueError(msg) from error
  if array.dtype.kind == 'V' and array.dtype.names is None:  # bfloat16
    array = array.astype(np.float32)
  kind, is_bytes = array.dtype.kind, array.dtype == np.uint8
  is_class = loss == 'cross_entropy' or (loss is None and kind in 'biu')
  problem, found = '', array
  if kind not in 'biuf':
    problem = (
      f'has the dtype {array.dtype}, and must be numbers; convert them, as in '
      f"numpy.stack(values).astype('float32')"
    )
  elif not array.ndim or not all(array.shape):
    problem = f'has the shape {array.shape} and needs at least one example'
  elif (
    what == 'tokens'
    or (what == 'labels' and is_class)
    or (what == 'inputs' and kind in 'iu' and not is_bytes)
  ):
    found = array.astype(np.int32)
    if kind == 'f':
      short = name.rpartition(': ')[2]
      problem = (
        f'has the dtype {array.dtype}; {what} are integers: '
        f"{short}.astype('int32'), or --loss mean_squared_error for numbers"
      )
    elif (least := int(array.min())) < -(2**31) or array.max() >= 2**31:
      wrong = least if least < 0 else array.max()
      problem = f'contains {wrong}; {what} are integers that fit in int32'
  elif what == 'inputs' and is_bytes:
    found = array.astype(np.float32)
    found /= 255
  else:
    with np.errstate(over='ignore'):
      found = array.astype(np.float32)
    # `min` and `max` need no memory, unlike `isfinite` of all entries.
    if not (np.isfinite(found.min()) and np.isfinite(found.max())):
      is_bad = ~np.isfinite(found.reshape(len(found), -1))
      row = int(np.flatnonzero(is_bad.any(axis=1))[0])
      wrong = found[row].ravel()[is_bad[row]][0]
      problem = (
        f'contains {wrong} in example {row}, and NaN or infinity in '
        f'{is_bad.any(axis=1).sum()} of {len(found)}; remove or replace them'
      )
  if problem:
    msg = f'{name} {problem}'
    raise ValueError(msg)
  return array, found
