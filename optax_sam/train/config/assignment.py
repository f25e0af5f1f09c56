"""Assignments of `--set NAME.SETTING=VALUE`."""

import ast
import numbers
from typing import Any

_LONGEST = 200
_TOO_LARGE = 2.0**63


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
  """Returns the value of a setting.

  Args:
    text: the assignment.
    setting: name of the setting.
    written: the value as written.
    default: default of the setting, which determines the type.

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
  elif isinstance(parsed, int | float) and not abs(parsed) < _TOO_LARGE:
    wanted = 'a finite number'
  if wanted:
    msg = f'--set {text}: {setting} must be {wanted}, not {written!r}'
    raise ValueError(msg)
  return parsed
