"""Datasets from arrays, dicts of arrays, and iterables of examples."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from optax_sam.train.data.datasets import Batch, Dataset

INPUT_KEYS = ('inputs', 'x', 'image', 'images', 'features', 'tokens')
TARGET_KEYS = ('labels', 'targets', 'y', 'label', 'target')
# An iterable without an end must not fill the memory.
_MOST_BYTES = 2**32
_MOST_EXAMPLES = 2**22
_INTEGERS = np.iinfo(np.int32)


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
  parts = {'train': train, 'test': test, 'validation': validation}
  if validation is None:
    del parts['validation']
  read = {name: _part(name, part, loss) for name, part in parts.items()}
  for name, part in read.items():
    for key, values in part.items():
      expected = read['train'][key]
      found, wanted = (
        f'{array.shape[1:]} and dtype {array.dtype}'
        for array in (values, expected)
      )
      if found != wanted:
        msg = (
          f'{name}: {key} of an example have shape {found}, and {wanted} in '
          f'train; give all parts the same'
        )
        raise ValueError(msg)
  return Dataset(classes=0, **read)


def _part(name: str, given: Any, loss: str | None) -> Batch:
  inputs, targets = _inputs_and_targets(name, given, loss)
  inputs = _numbers(name, 'inputs', inputs)
  if loss == 'next_token':
    tokens = _as_integers(name, 'tokens', inputs)
    return {'inputs': tokens, 'labels': tokens}
  targets = _numbers(name, 'targets', targets)
  if len(inputs) != len(targets):
    msg = (
      f'{name} has {len(inputs)} inputs and {len(targets)} targets; give as '
      f'many targets as inputs'
    )
    raise ValueError(msg)
  if inputs.dtype == np.uint8:
    inputs = inputs.astype(np.float32) / 255
  is_class = targets.dtype.kind in 'biu' and loss != 'mean_squared_error'
  return {
    'inputs': _as_integers(name, 'inputs', inputs)
    if inputs.dtype.kind in 'iu'
    else inputs.astype(np.float32),
    'labels': _as_integers(name, 'labels', targets)
    if is_class or loss == 'cross_entropy'
    else targets.astype(np.float32),
  }


def _inputs_and_targets(
  name: str, given: Any, loss: str | None
) -> tuple[Any, Any]:
  """Returns two values that are array-like; the targets may be None."""
  is_single = loss == 'next_token'
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


def _of_mapping(
  name: str, given: Mapping[str, Any], is_single: bool
) -> tuple[Any, Any]:
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
  return found[0], found[1]


def _of_examples(name: str, given: Any, is_single: bool) -> tuple[Any, Any]:
  inputs, targets, size = [], [], 0
  too_many = (
    f'{name} has more than {_MOST_EXAMPLES:,} examples, more than '
    f'{_MOST_BYTES >> 30} GiB or no end, and is read into memory; give fewer '
    f'examples, without repeat()'
  )
  # Of a Grain dataset that repeats without an end: the largest integer.
  if hasattr(given, '__len__') and len(given) > _MOST_EXAMPLES:
    raise ValueError(too_many)
  for example in given:
    if isinstance(example, Mapping):
      one = _of_mapping(name, example, is_single)
    elif isinstance(example, tuple | list) and len(example) == 2:
      one = tuple(example)
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
    if size > _MOST_BYTES or len(inputs) > _MOST_EXAMPLES:
      raise ValueError(too_many)
  for values in (inputs, targets):
    if len({np.shape(value) for value in values}) > 1:
      msg = f'{name} has examples of different shapes; give all the same shape'
      raise ValueError(msg)
  return np.array(inputs), np.array(targets)


def _numbers(name: str, what: str, values: Any) -> np.ndarray:
  """Returns an array of finite numbers with at least one example."""
  try:
    array = np.asarray(values)
  except ValueError as error:  # rows of different lengths
    msg = f'{name}: {what} are not an array: {error}'
    raise ValueError(msg) from error
  if array.dtype.kind not in 'biuf':
    if array.dtype.kind == 'V' and array.dtype.names is None:  # bfloat16
      array = array.astype(np.float32)
    else:
      msg = (
        f'{name}: {what} have the dtype {array.dtype}, and must be numbers; '
        f"convert them, as in numpy.stack(values).astype('float32')"
      )
      raise ValueError(msg)
  if not array.ndim or not len(array):
    msg = f'{name} has no {what}; give at least one example'
    raise ValueError(msg)
  if array.dtype.kind == 'f':
    bad = np.flatnonzero(
      ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
    )
    if len(bad):
      msg = (
        f'{name}: {what} have NaN or infinity in {len(bad)} of {len(array)} '
        f'examples, first in example {bad[0]}; remove or replace them'
      )
      raise ValueError(msg)
  return array


def _as_integers(name: str, what: str, values: np.ndarray) -> np.ndarray:
  if values.dtype.kind == 'f':
    hint = '' if what == 'tokens' else ", or give loss='mean_squared_error'"
    msg = (
      f'{name}: {what} must be integers, not {values.dtype}; convert them by '
      f".astype('int32'){hint}"
    )
    raise ValueError(msg)
  least, most = int(values.min()), int(values.max())
  if least < _INTEGERS.min or most > _INTEGERS.max:
    msg = f'{name}: {what} must fit in int32, not {least} to {most}'
    raise ValueError(msg)
  return values.astype(np.int32)
