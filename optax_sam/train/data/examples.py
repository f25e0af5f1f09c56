"""Forms of own examples: pairs, dicts, arrays and iterables."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

_INPUTS = ('inputs', 'x', 'image', 'images', 'features', 'tokens')
_TARGETS = ('labels', 'targets', 'y', 'label', 'target')
# An iterable without an end must not fill the memory.
_MOST_BYTES, _MOST_EXAMPLES = 2**32, 2**22


def inputs_and_targets(name: str, given: Any, is_tokens: bool) -> Any:
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
    too_many = size > _MOST_BYTES or len(inputs) > _MOST_EXAMPLES
    if too_many:
      break
  if too_many:
    msg = (
      f'{name} has more than {_MOST_EXAMPLES:,} examples, more than '
      f'{_MOST_BYTES >> 30} GiB or no end, and is read into memory; give fewer '
      f'examples, without repeat()'
    )
    raise ValueError(msg)
  return inputs, targets
