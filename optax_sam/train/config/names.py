"""Names and values on the command line: any case, suggestions for typos."""

import ast
import difflib
import numbers
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

# Longer lists are not printed in full.
_SHORT = 8
_LONGEST = 200
# Integers are counts in JAX's 32 bits; other numbers become float32.
_LARGEST = {True: 2**31 - 1, False: 3.4e38}


def find(
  what: str,
  name: str,
  allowed: Collection[str],
  *,
  aliases: Mapping[str, Iterable[str]] | None = None,
  hint: str = '',
) -> str:
  """Returns the allowed name that is meant, in any case, with - or _.

  Raises:
    ValueError: if none is meant, with the closest ones, or more than one. It
      begins with `what`; the `hint` says what else may be written.
  """
  for exact in (name, name.lower().replace('-', '_')):
    if exact in allowed:
      return exact
  squashed: dict[str, set[str]] = {}
  for one in allowed:
    for alias in (one, *(aliases or {}).get(one, ())):
      squashed.setdefault(_squash(alias), set()).add(one)
  found = sorted(squashed.get(_squash(name), ()))
  if len(found) == 1:
    return found[0]
  if found:
    msg = f'{what} {name!r} may mean {" or ".join(found)}; write one of these'
    raise ValueError(msg)
  meant = closest(name, allowed)
  listed = ''
  if len(allowed) <= _SHORT or not (meant or hint):
    listed = f'choose one of {", ".join(allowed)}'
  advice = ', '.join(filter(None, (listed, hint)))
  if meant:
    advice = f'did you mean {" or ".join(meant)}? {advice}'.strip()
  msg = f'{what} {name!r} is unknown; {advice}'
  raise ValueError(msg)


def closest(name: str, allowed: Collection[str]) -> list[str]:
  """Returns the names that are most like a name, at most three."""
  by_squashed = {_squash(one): one for one in allowed}
  close = difflib.get_close_matches(_squash(name), by_squashed, 3)
  return [by_squashed[one] for one in close]


def _squash(name: str) -> str:
  return re.sub('[^a-z0-9]', '', name.lower())


def split_assignment(text: str) -> tuple[str, str, str, str]:
  """Returns text for messages, name, setting and value of `--set`."""
  target, equals, value = text.partition('=')
  name, dot, setting = target.strip().partition('.')
  shown = text if len(text) <= _LONGEST else f'{text[:40]}...'
  if not (equals and dot) or shown != text:
    msg = f'--set {shown!r} must read NAME.SETTING=VALUE'
    raise ValueError(msg)
  return shown, name, setting, value.strip()


def parse_value(text: str, setting: str, written: str, default: Any) -> Any:
  """Returns the value of a setting, which is of the type of its default.

  Raises:
    ValueError: if it is of another type, infinite or too large.
  """
  try:
    parsed = ast.literal_eval(written)
  except (ValueError, SyntaxError, RecursionError, MemoryError):
    parsed = written
  is_number = isinstance(parsed, int | float) and not isinstance(parsed, bool)
  typical = default if isinstance(default, numbers.Real) else parsed
  wanted = ''
  if isinstance(default, bool):
    wanted = '' if isinstance(parsed, bool) else 'True or False'
  elif isinstance(default, numbers.Real) and not is_number:
    wanted = 'a number'
  elif isinstance(parsed, int | float):
    largest = _LARGEST[isinstance(typical, int)]
    if not abs(parsed) <= largest:
      wanted = f'a finite number, at most {largest:.2g}'
    elif setting == 'learning_rate' and not parsed > 0:
      wanted = 'above 0'
  if wanted:
    msg = f'--set {text}: {setting} must be {wanted}, not {written!r}'
    raise ValueError(msg)
  return parsed
