"""IDX files, the format of MNIST, Fashion-MNIST, KMNIST and EMNIST."""

import gzip
import pathlib
import zlib
from typing import BinaryIO, cast

import numpy as np

from optax_sam.train.data import locations, parts

# Third byte of the magic number.
_DTYPES = {
  0x08: 'u1',
  0x09: 'i1',
  0x0B: '>i2',
  0x0C: '>i4',
  0x0D: '>f4',
  0x0E: '>f8',
}
_PREFIXES = {'train': ('train',), 'test': ('t10k', 'test')}
_KINDS = ('images', 'labels')


def find_fashion_mnist(data_dir: pathlib.Path | None) -> pathlib.Path:
  """Returns the directory of Fashion-MNIST.

  Raises:
    ValueError: if there is none; says how to get the files.
  """
  return locations.find(
    'fashion_mnist',
    data_dir,
    ('fashion-mnist', 'fashion_mnist'),
    is_directory,
    'install it (Debian, Ubuntu: apt install dataset-fashion-mnist), or get '
    'the four files train-images-idx3-ubyte.gz ... from '
    'https://github.com/zalandoresearch/fashion-mnist',
  )


def is_directory(directory: pathlib.Path) -> bool:
  """Returns whether a directory has an IDX file of training images."""
  return bool(_matching(directory, 'train', 'images'))


def read(directory: pathlib.Path) -> list[parts.Part]:
  """Reads a directory of IDX files: images and labels, training and test.

  Names contain `train` or one of `t10k` and `test`, then `images` or `labels`,
  and end in `ubyte` or `ubyte.gz`.

  Raises:
    ValueError: if a file is missing or not valid.
  """
  found = []
  for part in _PREFIXES:
    paths = [_path(directory, part, kind) for kind in _KINDS]
    images, labels = map(read_array, paths)
    names = (paths[0].name, paths[1].name)
    found.append(parts.Part(images, labels, part, names))
  return found


def read_array(path: pathlib.Path) -> np.ndarray:
  """Reads one IDX file, compressed by gzip or not.

  Raises:
    ValueError: if it is not valid.
  """
  try:
    with path.open('rb') as plain:
      is_compressed = plain.read(2) == b'\x1f\x8b'
      plain.seek(0)
      file = gzip.GzipFile(fileobj=plain) if is_compressed else plain
      return _read(cast(BinaryIO, file), path)
  except (OSError, EOFError, zlib.error, MemoryError) as error:
    reason = getattr(error, 'strerror', None) or error or 'not enough memory'
    msg = f'{path} cannot be read: {reason}'
    raise ValueError(msg) from None


def _read(file: BinaryIO, path: pathlib.Path) -> np.ndarray:
  magic = file.read(4)
  if len(magic) < 4 or magic[:2] != b'\0\0' or magic[2] not in _DTYPES:
    msg = (
      f'{path} is not an IDX file: it begins with 0x{magic.hex()}, not with '
      f'0x000008 and the number of axes'
    )
    raise ValueError(msg)
  header = file.read(4 * magic[3])
  if len(header) < 4 * magic[3] or not magic[3]:
    msg = f'{path} is truncated, or has no axes'
    raise ValueError(msg)
  shape = tuple(map(int, np.frombuffer(header, '>u4')))
  dtype = np.dtype(_DTYPES[magic[2]])
  parts.check_size(str(path), shape, dtype.itemsize)
  count = int(np.prod(shape)) * dtype.itemsize
  content = file.read(count + 1)
  if len(content) != count:
    what = 'truncated' if len(content) < count else 'longer than it should be'
    msg = (
      f'{path} is {what}: its header says {shape}, which are {count} bytes; '
      f'get the file again'
    )
    raise ValueError(msg)
  return np.frombuffer(content, dtype).reshape(shape)


def _path(directory: pathlib.Path, part: str, kind: str) -> pathlib.Path:
  found = _matching(directory, part, kind)
  if len(found) != 1:
    usual = f'{_PREFIXES[part][0]}-{kind}-idx{3 if kind == "images" else 1}'
    has = 'no file' if not found else f'{len(found)} files'
    msg = f'{directory} has {has} of {part} {kind}, as in {usual}-ubyte.gz'
    raise ValueError(msg)
  return found[0]


def _matching(
  directory: pathlib.Path, part: str, kind: str
) -> list[pathlib.Path]:
  """Returns files of one kind; a compressed copy of a file doesn't count."""
  names = {
    path.name: path
    for path in sorted(directory.iterdir())
    if path.name.removesuffix('.gz').endswith('ubyte')
    and kind in path.name
    and any(prefix in path.name for prefix in _PREFIXES[part])
    and path.is_file()
  }
  return [
    path
    for name, path in names.items()
    if not (name.endswith('.gz') and name.removesuffix('.gz') in names)
  ]
