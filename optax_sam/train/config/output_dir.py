"""Output directories: created atomically, or locked while they grow."""

import contextlib
import datetime as dt
import fcntl
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

CONFIG = 'config.json'
LOCK = '.lock'
MARK = 'optax_sam'


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
  text = json.dumps(content, indent=2, sort_keys=True) + '\n'
  write(directory / CONFIG, text.encode())


def read_config(directory: pathlib.Path) -> dict[str, Any] | None:
  """Returns the content of `config.json`, None if it has another format."""
  try:
    content = json.loads((directory / CONFIG).read_text(encoding='utf-8'))
  except (OSError, ValueError, RecursionError):
    return None
  return content if isinstance(content, dict) and MARK in content else None


def check(
  target: pathlib.Path, *, overwrite: bool, known: frozenset[str]
) -> None:
  """Raises a ValueError if an output must not be written to `target`.

  Args:
    target: the directory to write.
    overwrite: whether a former output may be replaced.
    known: names of the files of a former output. A directory with any other
      entry is somebody's own and is never replaced.
  """
  if not (target.exists() or target.is_symlink()):
    return
  _check_directory(target)
  left_over = {'probe', *(unfinished(target / name).name for name in known)}
  names = {entry.name for entry in target.iterdir()} - left_over
  if names <= {LOCK}:  # of a killed process
    return
  if not overwrite:
    msg = f'--output {target} exists; choose another one or add --overwrite'
    raise ValueError(msg)
  foreign = sorted(names - known)
  if read_config(target) is None or foreign:
    why = f'it contains {foreign[0]!r}' if foreign else f'it has no {CONFIG}'
    msg = (
      f'--output {target} is not an output of optax-sam ({why}) and will not '
      f'be replaced; choose another one'
    )
    raise ValueError(msg)


def _check_directory(target: pathlib.Path) -> None:
  if target.is_symlink() or not target.is_dir():
    msg = f'--output {target} is not a directory; choose another one'
    raise ValueError(msg)


@contextlib.contextmanager
def created(target: pathlib.Path) -> Iterator[bool]:
  """Creates a directory that can be written; yields whether it is new.

  On leaving it is removed if it is new and empty, and so are its new parents.
  """
  target = pathlib.Path(os.path.abspath(target))  # noqa: PTH100 (no symlinks)
  new = _make_parents(target)
  try:
    _check_directory(target)
    _probe(target)
    yield target in new
  finally:
    with contextlib.suppress(OSError):  # not empty
      for directory in reversed(new):
        directory.rmdir()


@contextlib.contextmanager
def locked(directory: pathlib.Path) -> Iterator[None]:
  """Holds the lock of an output directory, one process at a time.

  Raises:
    ValueError: if another process holds it.
  """
  with (directory / LOCK).open('w') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      msg = (
        f'--output {directory} is being written by another optax-sam; wait for '
        f'it, or choose another directory'
      )
      raise ValueError(msg) from None
    yield


@contextlib.contextmanager
def new_directory(
  target: pathlib.Path, *, overwrite: bool, known: frozenset[str]
) -> Iterator[pathlib.Path]:
  """Yields a temporary sibling of `target` that is renamed at the end.

  On any error the sibling is removed and a former output is unchanged.

  Args:
    target: the directory to write.
    overwrite: whether a former output may be replaced.
    known: names of the files of an output, as in `check`.
  """
  target = pathlib.Path(os.path.abspath(target))  # noqa: PTH100 (no symlinks)
  check(target, overwrite=overwrite, known=known)
  created = _make_parents(target.parent)
  temporary = None
  try:
    temporary = pathlib.Path(
      tempfile.mkdtemp(prefix=f'.{target.name}-', dir=target.parent)
    )
    _probe(temporary)
    yield temporary
    temporary.chmod(0o755)
    check(target, overwrite=overwrite, known=known)
    _replace(target, temporary)
  except BaseException:
    if temporary is not None:
      shutil.rmtree(temporary, ignore_errors=True)
    for directory in reversed(created):
      with contextlib.suppress(OSError):
        directory.rmdir()
    raise


def _make_parents(directory: pathlib.Path) -> list[pathlib.Path]:
  """Creates missing directories and returns those that it created."""
  missing = []
  while not directory.exists():
    missing.append(directory)
    directory = directory.parent
  created = []
  for path in reversed(missing):
    path.mkdir()
    created.append(path)
  return created


def _probe(directory: pathlib.Path) -> None:
  """Raises an OSError now rather than after the training."""
  probe = directory / 'probe'
  try:
    probe.write_bytes(bytes(4096))
  finally:
    probe.unlink(missing_ok=True)


def _replace(target: pathlib.Path, temporary: pathlib.Path) -> None:
  if not target.exists():
    temporary.rename(target)
    return
  former = pathlib.Path(
    tempfile.mkdtemp(prefix=f'.{target.name}-former-', dir=target.parent)
  )
  target.rename(former / target.name)
  try:
    temporary.rename(target)
  except BaseException:
    (former / target.name).rename(target)
    former.rmdir()
    raise
  shutil.rmtree(former, ignore_errors=True)
