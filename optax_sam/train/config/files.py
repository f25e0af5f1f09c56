"""Flags of `optax-sam train` from a JSON file.

::

  {'about': 'any text', 'dataset': 'imagenet', 'batch-size': 4096}

The flags of the file come before those of the command line. So the latter
override them, and both pass the same checks.
"""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from optax_sam.train.config import configs

_FLAG = '--config'
_COMMENT = 'about'
# Either one sets the length of training.
_LENGTHS = ('steps', 'epochs')
_LISTS = ('set',)


def expand(arguments: Sequence[str]) -> list[str]:
  """Returns the arguments of a command, preceded by those of its file.

  Args:
    arguments: those of the command line, the command first.

  Raises:
    ValueError: if the file cannot be read, has an unknown key, or if file or
      command line give the length of the run twice.
  """
  command, flags = list(arguments[:1]), list(arguments[1:])
  if command != ['train']:
    return [*command, *flags]
  lengths = [
    name
    for name in _LENGTHS
    if any(flag.split('=')[0] == f'--{name}' for flag in flags)
  ]
  path = _path(flags)
  if path is None:
    _check_lengths(lengths)
    return [*command, *flags]
  given = _read(path)
  if lengths:  # override those of the file
    given = {key: given[key] for key in given if key not in _LENGTHS}
  _check_lengths(
    lengths or [name for name in _LENGTHS if given.get(name) is not None]
  )
  return [*command, *_as_flags(path, given), *flags]


def _check_lengths(given: Sequence[str]) -> None:
  if len(given) > 1:
    msg = '--steps and --epochs both give the length; leave one of them out'
    raise ValueError(msg)


def _path(flags: Sequence[str]) -> pathlib.Path | None:
  found = []
  for flag, after in itertools.zip_longest(flags, flags[1:], fillvalue=''):
    name, equals, value = flag.partition('=')
    if name == _FLAG:
      found.append(value if equals else after)
  if len(found) > 1:
    msg = f'{_FLAG} is given {len(found)} times; give one file'
    raise ValueError(msg)
  if found == ['']:
    msg = f'{_FLAG} needs the path of a JSON file'
    raise ValueError(msg)
  return pathlib.Path(found[0]) if found else None


def _read(path: pathlib.Path) -> dict[str, Any]:
  try:
    content = json.loads(path.read_text(encoding='utf-8'))
  except OSError as error:
    msg = f'{_FLAG} {path} cannot be read: {error.strerror}'
    raise ValueError(msg) from None
  except (ValueError, RecursionError) as error:
    msg = f'{_FLAG} {path} is not JSON: {error}'
    raise ValueError(msg) from None
  if not isinstance(content, dict):
    msg = f'{_FLAG} {path} must be one object that maps flags to values'
    raise ValueError(msg)
  known = {field.name for field in dataclasses.fields(configs.TrainConfig)}
  flags = sorted(name.replace('_', '-') for name in known - {'config'})
  given = {key.replace('_', '-'): value for key, value in content.items()}
  given.pop(_COMMENT, None)
  for key in given:
    if key not in flags:
      msg = (
        f'{_FLAG} {path}: unknown flag {key!r}; choose among {", ".join(flags)}'
      )
      raise ValueError(msg)
  return given


def _as_flags(path: pathlib.Path, given: dict[str, Any]) -> list[str]:
  flags = []
  for key, value in given.items():
    if isinstance(value, list) and key not in _LISTS:
      msg = f'{_FLAG} {path}: {key!r} takes one value, not a list'
      raise ValueError(msg)
    for one in value if isinstance(value, list) else [value]:
      if one is True:
        flags.append(f'--{key}')
      elif isinstance(one, str | int | float) and one is not False:
        flags += [f'--{key}', str(one)]
      elif one is not False and one is not None:
        msg = f'{_FLAG} {path}: {key!r} must be text, a number or true or false'
        raise ValueError(msg)
  return flags
