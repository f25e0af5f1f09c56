"""Images in ArrayRecord files, a few hundred of them instead of a million.

`DIR/train-00000-of-00256.array_record` and so on, and `DIR/manifest.json`, as
`imagenet.convert` writes them. A record is an image, little endian, without
anything between the parts:

| bytes | what |
|---|---|
| 4 | `OSI1`, so that a record of something else is noticed |
| 4 | label, unsigned |
| 2 | length of the name, unsigned |
| that many | name, UTF-8, as in `n01440764/n01440764_10026.JPEG` |
| the rest | the JPEG file as it was |

The files are written with `group_size:1`, so that a record can be read without
its neighbours, and uncompressed, as JPEG already is.

Images are spread over the shards at random, but counted as in the folder they
come from, sorted by class and name. So the same seed gives the same batches
from a folder and from its shards, unless the folder has corrupt images: the
shards don't have them.
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
# Fixes which image is in which shard: a conversion that goes on another day
# must come to the same answer.
_SPREAD_SEED = 0


def encode(example: Example) -> bytes:
  """Returns the record of an image."""
  name = example.name.encode()
  return _HEADER.pack(_MAGIC, example.label, len(name)) + name + example.jpeg


def decode(record: bytes) -> Example:
  """Returns the image of a record.

  Raises:
    ValueError: if the record is something else.

  >>> decode(encode(Example(b'...', 3, 'n01/1.JPEG')))
  Example(jpeg=b'...', label=3, name='n01/1.JPEG')
  """
  if len(record) < _HEADER.size or not record.startswith(_MAGIC):
    msg = f'a record that starts with {record[:4]!r} is not an image of ours'
    raise ValueError(msg)
  _, label, length = _HEADER.unpack_from(record)
  start = _HEADER.size + length
  name = record[_HEADER.size : start].decode()
  return Example(record[start:], label, name)


def spread(images: int) -> np.ndarray:
  """Returns the places in the folder of all images, shard after shard."""
  return permutation(images, _SPREAD_SEED)


class ShardSource:
  """The images of one split, in the order of the folder they come from."""

  def __init__(self, directory: pathlib.Path, split: Split) -> None:
    """Opens the shards without looking into them.

    Args:
      directory: of the shards.
      split: what they hold.
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
    """Returns the path of the shard that has an image, and where in it."""
    place = self._places[index]
    shard = int(np.searchsorted(self._ends, place, side='right'))
    first = self._ends[shard - 1] if shard else 0
    return f'{self._paths[shard]}, record {place - first}'


def open_shards(directory: pathlib.Path) -> Images:
  """Opens a directory of shards, after checking that all are whole.

  Args:
    directory: with a finished conversion.

  Raises:
    ValueError: that names the first file that is missing or not as the
      manifest says.
  """
  if not (directory / MANIFEST).exists() and (directory / UNFINISHED).exists():
    msg = (
      f'{directory} is a conversion that was interrupted; '
      f'run it again, it goes on where it was'
    )
    raise ValueError(msg)
  manifest = read_manifest(directory / MANIFEST)
  _check_all(directory, manifest)
  train, val = (
    ShardSource(directory, manifest.splits[name]) for name in ('train', 'val')
  )
  return Images(train, val, manifest.classes)


def difference(path: pathlib.Path, shard: Shard) -> str | None:
  """Says how a shard differs from what it should be, None if it doesn't."""
  if not path.is_file():
    return f'is missing; it should hold {shard.examples} images'
  size = path.stat().st_size
  if size != shard.bytes:
    return f'has {size} bytes instead of {shard.bytes}'
  found = count(path)
  if found != shard.examples:
    return f'holds {found} images instead of {shard.examples}'
  return None


def count(path: pathlib.Path) -> int:
  """Returns the number of records in a file, 0 if it isn't an ArrayRecord."""
  try:
    reader = array_record_module.ArrayRecordReader(str(path))
    try:
      return reader.num_records()
    finally:
      reader.close()
  except RuntimeError:  # damage that ArrayRecord notices at once
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
