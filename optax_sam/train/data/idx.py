"""IDX files, the format of MNIST, Fashion-MNIST, KMNIST and EMNIST."""

import gzip
import math
import pathlib

import numpy as np

from optax_sam.train.data.arrays import Part, check_size, readable

# Third byte of the magic number.
_DTYPES = {8: 'u1', 9: 'i1', 11: '>i2', 12: '>i4', 13: '>f4', 14: '>f8'}
_PREFIXES = {'train': ('train',), 'test': ('t10k', 'test')}


def is_directory(directory: pathlib.Path) -> bool:
  """Returns whether a directory has an IDX file of training images."""
  return bool(_matching(directory, 'train', 'images'))


def read(directory: pathlib.Path) -> list[Part]:
  """Reads a directory of IDX files: images and labels, training and test.

  Names contain `train` or one of `t10k` and `test`, then `images` or `labels`,
  and end in `ubyte` or `ubyte.gz`.
  """
  parts = []
  for part in _PREFIXES:
    paths = [_path(directory, part, kind) for kind in ('images', 'labels')]
    images, labels = map(_array, paths)
    parts.append(Part(part, images, labels, (str(paths[0]), str(paths[1]))))
  return parts


def _array(path: pathlib.Path) -> np.ndarray:
  """Reads one IDX file, compressed by gzip or not."""
  with readable(path):
    with path.open('rb') as file:
      is_compressed = file.read(2) == b'\x1f\x8b'
    with gzip.open(path) if is_compressed else path.open('rb') as file:
      magic = file.read(4)
      if len(magic) < 4 or magic[:2] != b'\0\0' or magic[2] not in _DTYPES:
        msg = (
          f'it is not an IDX file: it begins with 0x{magic.hex()}, not with '
          f'0x000008 and the number of axes'
        )
        raise ValueError(msg)
      header = file.read(4 * magic[3])
      if len(header) < 4 * magic[3] or not header:
        msg = 'it is truncated, or has no axes'
        raise ValueError(msg)
      shape = tuple(np.frombuffer(header, '>u4').tolist())
      dtype = np.dtype(_DTYPES[magic[2]])
      check_size('an array', shape, dtype.itemsize)
      count = math.prod(shape) * dtype.itemsize
      content = file.read(count + 1)
    if len(content) != count:
      what = 'truncated' if len(content) < count else 'longer than it should be'
      msg = (
        f'it is {what}: its header says {shape}, which are {count} bytes; get '
        f'the file again'
      )
      raise ValueError(msg)
    return np.frombuffer(content, dtype).reshape(shape)


def _path(directory: pathlib.Path, part: str, kind: str) -> pathlib.Path:
  found = _matching(directory, part, kind)
  if len(found) != 1:
    usual = f'{_PREFIXES[part][0]}-{kind}-idx{3 if kind == "images" else 1}'
    has = f'{len(found)} files' if found else 'no file'
    msg = f'{directory} has {has} of {part} {kind}, as in {usual}-ubyte.gz'
    raise ValueError(msg)
  return found[0]


def _matching(
  directory: pathlib.Path, part: str, kind: str
) -> list[pathlib.Path]:
  """Returns files of one kind; a compressed copy of a file doesn't count."""
  found = {
    path.name.removesuffix('.gz'): path
    for path in sorted(directory.iterdir(), reverse=True)
    if path.name.endswith(('ubyte', 'ubyte.gz'))
    and kind in path.name
    and any(prefix in path.name for prefix in _PREFIXES[part])
    and path.is_file()
  }
  return list(found.values())
