"""Assignments of `--set NAME.SETTING=VALUE`."""

import ast
import numbers
from typing import Any

_LONGEST = 200
# Integers are counts in JAX's 32 bits; other numbers become float32.
_LARGEST = {True: 2**31 - 1, False: 3.4e38}


def split(text: str) -> tuple[str, str, str, str]:
  """Returns text for messages, name, setting and value of an assignment.

  Raises:
    ValueError: if it has another form.
  """
  target, equals, value = text.partition('=')
  name, dot, setting = target.strip().partition('.')
  shown = text if len(text) <= _LONGEST else f'{text[:40]}...'
  if not (equals and dot) or shown != text:
    msg = f'--set {shown!r} must read NAME.SETTING=VALUE'
    raise ValueError(msg)
  return shown, name, setting, value.strip()


def value(text: str, setting: str, written: str, default: Any) -> Any:
  """Returns the value of a setting, as written in the assignment `text`.

  The default of the setting determines the type.

  Raises:
    ValueError: if it is of another type, infinite or too large.
  """
  try:
    parsed = ast.literal_eval(written)
  except (ValueError, SyntaxError, RecursionError, MemoryError):
    parsed = written
  is_number = isinstance(parsed, int | float) and not isinstance(parsed, bool)
  wanted = ''
  if isinstance(default, bool):
    wanted = '' if isinstance(parsed, bool) else 'True or False'
  elif isinstance(default, numbers.Real) and not is_number:
    wanted = 'a number'
  elif isinstance(parsed, int | float):
    typical = default if isinstance(default, numbers.Real) else parsed
    largest = _LARGEST[isinstance(typical, int)]
    if not abs(parsed) <= largest:
      wanted = f'a finite number, at most {largest:.2g}'
    elif setting == 'learning_rate' and not parsed > 0:
      wanted = 'above 0'
  if wanted:
    msg = f'--set {text}: {setting} must be {wanted}, not {written!r}'
    raise ValueError(msg)
  return parsed
