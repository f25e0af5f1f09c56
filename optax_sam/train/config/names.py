"""Names on the command line: any case, hyphens, suggestions for typos."""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping

# Longer lists are not printed in full.
_SHORT = 8


def find(
  what: str,
  name: str,
  allowed: Collection[str],
  *,
  aliases: Mapping[str, Iterable[str]] | None = None,
  hint: str = '',
) -> str:
  """Returns the allowed name that is meant.

  Case, hyphens and underscores don't matter.

  Args:
    what: the flag, for the error message.
    name: what was written.
    allowed: the names to choose from.
    aliases: other names of some of them.
    hint: what else to write, or how to get a long list of names.

  Raises:
    ValueError: if none is meant, with the closest ones, or more than one.
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
  meant = ' or '.join(closest(name, allowed))
  is_listed = len(allowed) <= _SHORT or not (meant or hint)
  listed = f'choose one of {", ".join(allowed)}' if is_listed else ''
  advice = ', '.join(filter(None, (listed, hint)))
  if meant:
    advice = f'did you mean {meant}? {advice}'.strip()
  msg = f'{what} {name!r} is unknown; {advice}'
  raise ValueError(msg)


def closest(name: str, allowed: Collection[str]) -> list[str]:
  """Returns the names that are most like a name, at most three."""
  by_squashed = {_squash(one): one for one in allowed}
  close = difflib.get_close_matches(_squash(name), by_squashed, 3)
  return [by_squashed[one] for one in close]


def _squash(name: str) -> str:
  return re.sub('[^a-z0-9]', '', name.lower())
