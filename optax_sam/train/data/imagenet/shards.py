"""Images in shards: a few hundred ArrayRecord files.

`imagenet.convert` writes `DIR/train-00000-of-00256.array_record` and so on, and
`DIR/manifest.json`. A record is an image, little endian, with these fields:

| bytes | what |
|---|---|
| 4 | `OSI1`, which identifies the format |
| 4 | label, unsigned |
| 2 | length of the name, unsigned |
| that many | name, UTF-8, as in `n01440764/n01440764_10026.JPEG` |
| the rest | the unchanged JPEG file |

The files are written with `group_size:1`, so that single records can be read,
and without compression, because JPEG is compressed.

Images are assigned to shards at random, but indexed as in the folder, sorted by
class and name. So a seed gives the same batches from a folder and from its
shards, unless the folder has corrupt images, which the shards omit.
"""

import pathlib
import struct
from concurrent import futures
from typing import Any

import grain
import numpy as np
from array_record.python import array_record_module

from optax_sam.train.data.imagenet.manifest import (
  MANIFEST,
  UNFINISHED,
  Manifest,
  Shard,
  Split,
  read_manifest,
)
from optax_sam.train.data.imagenet.order import permutation
from optax_sam.train.data.imagenet.sources import CorruptImage, Example, Images

_MAGIC = b'OSI1'
_HEADER = struct.Struct('<4sIH')
_THREADS = 16
# Fixes the shard of each image, so that a resumed conversion agrees with the
# interrupted one.
_SPREAD_SEED = 0


def encode(example: Example) -> bytes:
  """Returns the record of an image."""
  name = example.name.encode()
  return _HEADER.pack(_MAGIC, example.label, len(name)) + name + example.jpeg


def decode(record: bytes) -> Example:
  """Returns the image of a record.

  Raises:
    ValueError: if the record has another format.

  >>> decode(encode(Example(b'...', 3, 'n01/1.JPEG')))
  Example(jpeg=b'...', label=3, name='n01/1.JPEG')
  """
  if len(record) < _HEADER.size or not record.startswith(_MAGIC):
    msg = f'a record that starts with {record[:4]!r} is not an image record'
    raise ValueError(msg)
  _, label, length = _HEADER.unpack_from(record)
  start = _HEADER.size + length
  name = record[_HEADER.size : start].decode()
  return Example(record[start:], label, name)


def spread(images: int) -> np.ndarray:
  """Returns the folder indices of all images, in the order of the shards."""
  return permutation(images, _SPREAD_SEED)


class ShardSource:
  """The images of one split, in the order of the converted folder."""

  def __init__(self, directory: pathlib.Path, split: Split) -> None:
    """Opens the shards without reading them.

    Args:
      directory: directory of the shards.
      split: the expected content.
    """
    self._paths = [directory / name for name in split.shards]
    counts = [shard.examples for shard in split.shards.values()]
    self._ends = np.cumsum(counts)
    self._records: Any = grain.sources.ArrayRecordDataSource(
      [str(path) for path in self._paths]
    )
    intact = np.ones(split.images, np.bool_)
    intact[list(split.corrupt.values())] = False
    stored = spread(split.images)
    # The i-th intact image of the folder is the record at self._places[i].
    self._places = np.argsort(stored[intact[stored]])

  def __len__(self) -> int:
    """Returns the number of images."""
    return len(self._places)

  def __getitem__(self, index: int) -> Example:
    """Reads one image; raises a CorruptImage if the record is damaged."""
    try:
      return decode(self._records[int(self._places[index])])
    except (RuntimeError, ValueError) as error:
      msg = f'the record cannot be read: {error}'
      raise CorruptImage(msg) from error

  def where(self, index: int) -> str:
    """Returns the path of the shard with an image, and its record number."""
    place = self._places[index]
    shard = int(np.searchsorted(self._ends, place, side='right'))
    first = self._ends[shard - 1] if shard else 0
    return f'{self._paths[shard]}, record {place - first}'


def open_shards(directory: pathlib.Path) -> Images:
  """Opens a directory of shards and checks that all are complete.

  Args:
    directory: directory of a finished conversion.

  Raises:
    ValueError: if a file is missing or differs from the manifest; names the
      first one.
  """
  if not (directory / MANIFEST).exists() and (directory / UNFINISHED).exists():
    msg = (
      f'{directory} is a conversion that was interrupted; '
      f'run it again to resume it'
    )
    raise ValueError(msg)
  manifest = read_manifest(directory / MANIFEST)
  _check_all(directory, manifest)
  train, val = (
    ShardSource(directory, manifest.splits[name]) for name in ('train', 'val')
  )
  return Images(train, val, manifest.classes)


def difference(path: pathlib.Path, shard: Shard) -> str | None:
  """Describes how a shard differs from the manifest, None if it agrees."""
  if not path.is_file():
    return f'is missing; it should contain {shard.examples} images'
  size = path.stat().st_size
  if size != shard.bytes:
    return f'has {size} bytes instead of {shard.bytes}'
  found = count(path)
  if found != shard.examples:
    return f'contains {found} images instead of {shard.examples}'
  return None


def count(path: pathlib.Path) -> int:
  """Returns the number of records in a file, 0 if it isn't an ArrayRecord."""
  try:
    reader = array_record_module.ArrayRecordReader(str(path))
    try:
      return reader.num_records()
    finally:
      reader.close()
  except RuntimeError:  # damaged
    return 0


def _check_all(directory: pathlib.Path, manifest: Manifest) -> None:
  for name in ('train', 'val'):
    split = manifest.splits.get(name)
    if split is None or len(split.shards) != split.shard_count:
      msg = (
        f'{directory / MANIFEST} does not list all shards of {name}; '
        f'convert the images again, into an empty directory'
      )
      raise ValueError(msg)
    paths = [directory / file for file in split.shards]
    with futures.ThreadPoolExecutor(_THREADS) as pool:
      differences = pool.map(difference, paths, split.shards.values())
      for path, found in zip(paths, differences, strict=True):
        if found is not None:
          msg = f'{path} {found}; copy it again or convert the images again'
          raise ValueError(msg)
