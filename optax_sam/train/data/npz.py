"""Datasets in an .npz file of NumPy."""

import pathlib
import zipfile

import numpy as np

from optax_sam.train.data.arrays import Part, check_size, readable

_SUFFIXES = {'train': 'train', 'test': 'test', 'validation': 'val'}


def read(path: pathlib.Path, *, has_targets: bool = True) -> list[Part]:
  """Reads x_train, y_train, x_test, y_test, and x_val, y_val if present.

  Without targets the inputs are the targets. Raises a ValueError if the file or
  an array is missing, damaged, too large, or has Python objects, which could
  run code when they are read.
  """
  letters = 'xy' if has_targets else 'x'
  with readable(path), zipfile.ZipFile(path) as archive:
    names = {name.removesuffix('.npy') for name in archive.namelist()}
  parts = ['train', 'test', 'validation'][
    : 3 if names & {'x_val', 'y_val'} else 2
  ]
  keys = {p: [f'{letter}_{_SUFFIXES[p]}' for letter in letters] for p in parts}
  missing = [key for part in parts for key in keys[part] if key not in names]
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
  found = []
  for part in parts:
    where = [f'{path}: {key}' for key in keys[part]]
    arrays = [_array(path, key) for key in keys[part]]
    found.append(Part(part, arrays[0], arrays[-1], (where[0], where[-1])))
  return found


def _array(path: pathlib.Path, key: str) -> np.ndarray:
  where, name = f'{path}: {key}', f'{key}.npy'
  with readable(where), zipfile.ZipFile(path) as archive:
    with archive.open(name) as file:
      read_header = (
        np.lib.format.read_array_header_1_0
        if np.lib.format.read_magic(file) == (1, 0)
        else np.lib.format.read_array_header_2_0
      )
      shape, _, dtype = read_header(file)
    if dtype.hasobject or dtype.names:
      msg = 'it contains Python objects or fields; save plain numbers'
      raise ValueError(msg)
    check_size('it', shape, dtype.itemsize)
    with archive.open(name) as file:
      return np.lib.format.read_array(file, allow_pickle=False)
