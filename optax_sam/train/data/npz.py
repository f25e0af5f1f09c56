"""Datasets in an .npz file of NumPy."""

import contextlib
import pathlib
import zipfile
from collections.abc import Iterator
from typing import IO

import numpy as np

from optax_sam.train.data import parts

_SUFFIXES = {'train': 'train', 'test': 'test', 'validation': 'val'}


def read(path: pathlib.Path, *, has_targets: bool = True) -> list[parts.Part]:
  """Reads x_train, y_train, x_test, y_test, and x_val, y_val if present.

  Args:
    path: the file.
    has_targets: whether there are targets; else the inputs are the targets.

  Raises:
    ValueError: if the file or an array is missing, damaged, too large, or has
      Python objects, which could run code when they are read.
  """
  letters = 'xy' if has_targets else 'x'
  try:
    with zipfile.ZipFile(path) as archive:
      names = {name.removesuffix('.npy') for name in archive.namelist()}
      wanted = ['train', 'test']
      if names & {'x_val', 'y_val'}:
        wanted.append('validation')
      keys = {
        part: [f'{letter}_{_SUFFIXES[part]}' for letter in letters]
        for part in wanted
      }
      missing = [
        key for part in wanted for key in keys[part] if key not in names
      ]
      if missing:
        msg = (
          f'{path} has no {", ".join(missing)}; it has '
          f'{", ".join(sorted(names)) or "nothing"}'
        )
        raise ValueError(msg)
      if not has_targets and (unused := names & {'y_train', 'y_test'}):
        msg = (
          f'{path} has {min(unused)}, and the targets of --loss next_token are '
          f'the inputs; leave it out'
        )
        raise ValueError(msg)
      arrays = {
        key: _array(archive, f'{path}: {key}', f'{key}.npy')
        for part in wanted
        for key in keys[part]
      }
  except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
    reason = getattr(error, 'strerror', None) or error
    msg = f'{path} cannot be read as .npz: {reason}'
    raise ValueError(msg) from None
  return [
    parts.Part(
      arrays[keys[part][0]],
      arrays[keys[part][-1]],
      part,
      (keys[part][0], keys[part][-1]),
    )
    for part in wanted
  ]


def _array(archive: zipfile.ZipFile, where: str, name: str) -> np.ndarray:
  with _readable(where), archive.open(name) as file:
    shape, dtype = _header(file)
  if dtype.hasobject or dtype.names:
    msg = (
      f'{where} contains Python objects or fields; save plain numbers, as in '
      f"np.savez('mine.npz', x_train=x_train.astype('float32'))"
    )
    raise ValueError(msg)
  parts.check_size(where, shape, dtype.itemsize)
  with _readable(where), archive.open(name) as file:
    return np.lib.format.read_array(file, allow_pickle=False)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
  """Returns shape and dtype without reading the array."""
  if np.lib.format.read_magic(file) == (1, 0):
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
  else:
    shape, _, dtype = np.lib.format.read_array_header_2_0(file)
  return shape, dtype


@contextlib.contextmanager
def _readable(where: str) -> Iterator[None]:
  """Raises a ValueError in one line: damaged files raise almost anything."""
  try:
    yield
  except Exception as error:  # noqa: BLE001
    reason = str(error).split('\n')[0] or type(error).__name__
    msg = f'{where} cannot be read: {reason}'
    raise ValueError(msg) from None
