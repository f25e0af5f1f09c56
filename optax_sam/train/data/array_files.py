"""Arrays in .npz files of NumPy and in IDX files, the format of MNIST."""

import gzip
import math
import pathlib
from typing import Any

import numpy as np

from optax_sam.train.data.arrays import Parts, check_size, readable

# Third byte of the magic number of an IDX file.
_DTYPES = {8: 'u1', 9: 'i1', 11: '>i2', 12: '>i4', 13: '>f4', 14: '>f8'}


def read_npz(path: pathlib.Path, *, has_targets: bool = True) -> Parts:
  """Reads x_train, y_train, x_test, y_test, and x_val, y_val if present.

  Without targets the inputs are the targets. Raises a ValueError if the file or
  an array is missing, damaged, too large, or has Python objects, which could
  run code when they are read.
  """
  parts = {}
  file: Any = path
  with readable('it'):
    archive: Any = np.lib.npyio.NpzFile(file, allow_pickle=False)
  with archive:
    stored = {*archive.files}
    names = {'train': 'train', 'test': 'test', 'validation': 'val'}
    if not stored & {'x_val', 'y_val'}:
      del names['validation']
    for part, name in names.items():
      keys = [f'{letter}_{name}' for letter in ('xy' if has_targets else 'xx')]
      missing = [key for key in keys if key not in stored]
      problem = f'has no {missing[0]}' if missing else ''
      if not has_targets and f'y_{name}' in stored:
        problem = f'has y_{name}, but with --loss next_token only inputs'
      if problem:
        msg = f'it {problem}; it has {", ".join(sorted(stored))}'
        raise ValueError(msg)
      arrays = {}
      for key in keys:
        with readable(key):
          entry = archive.zip.getinfo(f'{key}.npy')
          check_size('it', [entry.file_size // 4])  # before it is read
          arrays[key] = found = np.asarray(archive[key])
          check_size('it', found.shape, found.itemsize)
      parts[part] = arrays[keys[0]], arrays[keys[1]]
  return parts


def read_idx(directory: pathlib.Path) -> Parts:
  """Reads images and labels, training and test, compressed by gzip or not.

  Names contain `train` or one of `t10k` and `test`, then `images` or `labels`,
  and end in `ubyte` or `ubyte.gz`.
  """
  parts = {}
  for part in ('train', 'test'):
    paths = []
    for kind in ('images', 'labels'):
      found = idx_files(directory, part, kind)
      if len(found) != 1:
        msg = (
          f'it has {len(found) or "no"} files of {part} {kind}, such '
          f'as train-images-idx3-ubyte.gz or t10k-labels-idx1-ubyte; give one'
        )
        raise ValueError(msg)
      paths += found
    parts[part] = _of_idx(paths[0]), _of_idx(paths[1])
  return parts


def idx_files(
  directory: pathlib.Path, part: str, kind: str
) -> list[pathlib.Path]:
  """Returns IDX files of one kind, without compressed copies."""
  names = ('train',) if part == 'train' else ('t10k', 'test')
  found = {
    path.name.removesuffix('.gz'): path
    for path in sorted(directory.iterdir(), reverse=True)
    if path.name.endswith(('ubyte', 'ubyte.gz'))
    and kind in path.name
    and any(name in path.name for name in names)
    and path.is_file()
  }
  return list(found.values())


def _of_idx(path: pathlib.Path) -> np.ndarray:
  with readable(path.name, 'get the file again'):
    with path.open('rb') as file:
      is_compressed = file.read(2) == b'\x1f\x8b'
    with gzip.open(path) if is_compressed else path.open('rb') as file:
      magic = file.read(4)
      if len(magic) < 4 or magic[:2] != b'\0\0' or magic[2] not in _DTYPES:
        msg = f'it is not an IDX file: it begins with 0x{magic.hex()}'
        raise ValueError(msg)
      shape = np.frombuffer(file.read(4 * magic[3]), '>u4').tolist()
      dtype = np.dtype(_DTYPES[magic[2]])
      check_size('an array', shape, dtype.itemsize)
      count = math.prod(shape) * dtype.itemsize
      content = file.read(count + 1)
    if len(shape) != magic[3] or len(content) != count:
      msg = (
        f'it is truncated or too long: its header says {shape}, which are '
        f'{count} bytes'
      )
      raise ValueError(msg)
    return np.frombuffer(content, dtype).reshape(shape)
