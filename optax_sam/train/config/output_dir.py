"""Output directories: checked, locked, and written file by file."""

import contextlib
import datetime as dt
import fcntl
import json
import os
import pathlib
import shutil
import time
from collections.abc import Iterator
from typing import Any, NotRequired, TypedDict, cast

import msgspec

from optax_sam.train.config import configs

CONFIG = 'config.json'
LOCK = '.lock'
MARK = 'optax_sam'
_STAGE = '.unfinished'


class _Config(TypedDict):
  """The schema of `config.json`."""

  optax_sam: str
  settings: dict[str, Any]
  adding: NotRequired[dict[str, Any] | None]
  data_dir: NotRequired[str | None]


def dated(name: str) -> pathlib.Path:
  """Returns the default output directory, named with date and time."""
  now = dt.datetime.now().astimezone()
  return pathlib.Path('runs') / f'{name}-{now:%Y%m%d-%H%M%S}'


def write(path: pathlib.Path, content: bytes) -> None:
  """Writes a file atomically, which survives a crash once this returns.

  Raises:
    OSError: that names the file; then it is unchanged.
  """
  temporary = unfinished(path)
  try:
    with temporary.open('wb') as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    temporary.replace(path)
  except OSError as error:
    with contextlib.suppress(OSError):
      temporary.unlink()
    raise OSError(error.errno, error.strerror, str(path)) from None


def unfinished(path: pathlib.Path) -> pathlib.Path:
  """Returns the file that an interrupted write may leave."""
  return path.with_name(f'.{path.name}.unfinished')


def write_config(
  directory: pathlib.Path, command: str, settings: dict[str, Any], **more: Any
) -> None:
  """Writes `config.json`, which marks an output of optax-sam."""
  content = {MARK: command, 'settings': settings, **more}
  text = json.dumps(content, indent=2, sort_keys=True, default=str)
  write(directory / CONFIG, f'{text}\n'.encode())


def read_config(directory: pathlib.Path) -> dict[str, Any] | None:
  """Returns the content of `config.json`, None if it has another format."""
  path = directory / CONFIG
  if not path.is_file():  # reading a pipe could block forever
    return None
  try:
    found = msgspec.json.decode(path.read_bytes(), type=_Config)
  except (OSError, ValueError, RecursionError, msgspec.MsgspecError):
    return None
  return cast('dict[str, Any]', found)


def write_run(path: pathlib.Path, config: configs.TrainConfig) -> None:
  """Writes the configuration of a run, with the place of its data."""
  data = config.data_dir and str(config.data_dir.absolute())
  write_config(path, 'train', configs.settings(config), data_dir=data)


def read_run(path: pathlib.Path | None, flag: str = '') -> configs.TrainConfig:
  """Returns the configuration of a run, which `optax-sam train` has written.

  The message of a ValueError begins with the flag that gave the path.
  """
  if path is None:
    msg = '--resume needs --output, the directory of the run to resume'
    raise ValueError(msg)
  if not path.is_dir():
    msg = f'{flag}{path}: there is no run'
    raise ValueError(msg)
  found = read_config(path)
  if found is None or found[MARK] != 'train':
    msg = f'{flag}{path} is not a run of `optax-sam train`'
    raise ValueError(msg)
  places = {'data_dir': found.get('data_dir'), 'output': path}
  where = f'{path / CONFIG}: '
  return configs.build(configs.TrainConfig, found['settings'] | places, where)


def check(
  target: pathlib.Path, *, overwrite: bool, known: frozenset[str]
) -> None:
  """Raises a ValueError if an output must not be written to `target`.

  A former output, with no other files than the `known` ones, may be replaced if
  `overwrite` says so. Names of directories have no dot.
  """
  if not os.path.lexists(target):
    return
  if target.is_symlink() or not target.is_dir():
    msg = f'--output {target} is not a directory; choose another one'
    raise ValueError(msg)
  reason = ''
  left_over = {LOCK, _STAGE, *(unfinished(target / x).name for x in known)}
  entries = {x.name: x for x in target.iterdir() if x.name not in left_over}
  foreign = sorted(
    f'contains {name!r}'
    for name, path in entries.items()
    if name not in known or path.is_dir() == ('.' in name)
  )
  if read_config(target) is None:
    foreign.append(f'has no {CONFIG}')
  if entries and not overwrite:
    reason = 'exists; choose another one or add --overwrite'
  elif entries and foreign:
    reason = (
      f'is not an output of optax-sam (it {foreign[0]}) and will not be '
      f'replaced; choose another one'
    )
  if reason:
    msg = f'--output {target} {reason}'
    raise ValueError(msg)


@contextlib.contextmanager
def created(target: pathlib.Path) -> Iterator[bool]:
  """Yields whether a directory is new, which is removed if it stays empty."""
  target = pathlib.Path(os.path.abspath(target))  # noqa: PTH100 (no symlinks)
  new = [path for path in (target, *target.parents) if not path.exists()]
  try:
    for path in reversed(new):
      path.mkdir(exist_ok=True)
    yield target in new
  finally:
    with contextlib.suppress(OSError):  # not empty
      for path in new:
        path.rmdir()


@contextlib.contextmanager
def locked(directory: pathlib.Path) -> Iterator[None]:
  """Holds the lock of a directory; a ValueError if another process does."""
  with (directory / LOCK).open('w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      msg = (
        f'--output {directory} is being written by another optax-sam; wait for '
        f'it, or choose another directory'
      )
      raise ValueError(msg) from None
    except OSError:
      pass  # a file system without locks
    try:
      file.write(' ' * 4096)  # raises if the disk is full
      file.flush()
      file.truncate(0)
      yield
    finally:
      if os.listdir(directory) == [LOCK]:  # noqa: PTH208
        (directory / LOCK).unlink()


@contextlib.contextmanager
def opened(
  target: pathlib.Path,
  *,
  known: frozenset[str],
  overwrite: bool = False,
  resume: bool = False,
) -> Iterator[None]:
  """Holds an output directory that is new, may be replaced, or is resumed."""
  if not resume:
    check(target, overwrite=overwrite, known=known)
  with created(target), locked(target):
    if not resume:  # it may have appeared meanwhile
      check(target, overwrite=overwrite, known=known)
    yield


def clear(directory: pathlib.Path, known: frozenset[str]) -> None:
  """Removes the files of an output; config.json, which marks it, is last."""
  for name in sorted(known - {LOCK}, key=CONFIG.__eq__):
    for path in (directory / name, unfinished(directory / name)):
      if path.is_dir() and not path.is_symlink():
        _remove_tree(path)
      else:
        path.unlink(missing_ok=True)


def _remove_tree(path: pathlib.Path) -> None:
  """Removes a directory; tries again if a file is created meanwhile."""
  for _ in range(20):
    with contextlib.suppress(OSError):
      shutil.rmtree(path)
    if not path.exists():
      return
    time.sleep(0.05)
  shutil.rmtree(path)


@contextlib.contextmanager
def staged(target: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a directory whose files replace those of `target` at the end."""
  directory = target / _STAGE
  shutil.rmtree(directory, ignore_errors=True)
  directory.mkdir()
  try:
    yield directory
    for path in directory.iterdir():
      path.replace(target / path.name)
  finally:
    shutil.rmtree(directory, ignore_errors=True)
