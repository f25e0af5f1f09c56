"""Images in shards: a few hundred ArrayRecord files, and their manifest.

`imagenet.convert` writes `DIR/train-00000-of-00256.array_record` and so on. A
record is the label (4 bytes, unsigned, little endian) and the file of an image.
The images have the order of the folder. So a seed gives the same batches from a
folder and from its shards, unless the folder has corrupt images, which the
shards omit. Single records can be read (`group_size:1`) and are not compressed,
because JPEG is.

`DIR/manifest.json` exists if the conversion is finished::

    {
      'format': 'optax_sam image shards 2',
      'classes': ['n01440764', ...],
      'train': [{'images': 5004, 'fingerprint': '...'}, ...],
      'val': [...],
    }

The n-th entry belongs to the n-th file, whose name it does not contain.
`fingerprint` is that of the start, the end and the size of the file.
"""

import contextlib
import hashlib
import pathlib
from concurrent import futures
from typing import Annotated, Any, Literal

import grain
import msgspec
import numpy as np
from array_record.python import array_record_module

from optax_sam.train.data.image_files import CorruptImage, Example, Files

MANIFEST = 'manifest.json'
SUFFIX = '.array_record'
FORMAT: Literal['optax_sam image shards 2'] = 'optax_sam image shards 2'
_LABEL = 4  # bytes
_THREADS = 16
# The end of a file has the offsets of all records.
_START, _END = 2**16, 2**17


class Shard(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
  """The expected content of one file."""

  images: Annotated[int, msgspec.Meta(ge=0, le=2**31)]
  fingerprint: Annotated[str, msgspec.Meta(pattern='^[0-9a-f]{32}$')]


Shards = Annotated[
  tuple[Shard, ...], msgspec.Meta(min_length=1, max_length=99999)
]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
  """The expected content of a directory of shards."""

  format: Literal['optax_sam image shards 2']
  classes: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
  train: Shards
  val: Shards


def shard_names(split: str, count: int) -> list[str]:
  """Returns the file names of a split.

  >>> shard_names('val', 2)
  ['val-00000-of-00002.array_record', 'val-00001-of-00002.array_record']
  """
  return [f'{split}-{k:05}-of-{count:05}{SUFFIX}' for k in range(count)]


def encode(example: Example) -> bytes:
  """Returns the record of an image."""
  return example.label.to_bytes(_LABEL, 'little') + example.content


def fingerprint(path: pathlib.Path) -> str:
  """Returns what identifies a shard without reading all of it."""
  size = path.stat().st_size
  digest = hashlib.sha256(str(size).encode())
  with path.open('rb') as file:
    digest.update(file.read(_START))
    file.seek(max(0, size - _END))
    digest.update(file.read(_END))
  return digest.hexdigest()[:32]


def reader(path: pathlib.Path) -> Any:
  """Opens a shard; raises a RuntimeError if it is damaged."""
  return array_record_module.ArrayRecordReader(str(path))


class ShardSource:
  """The images of one split."""

  def __init__(
    self, directory: pathlib.Path, split: str, shards: Shards, classes: int
  ) -> None:
    """Opens shards; raises a ValueError if one is missing or differs."""
    names = shard_names(split, len(shards))
    self._paths = [directory / name for name in names]
    self._classes = classes
    self._ends = np.cumsum([shard.images for shard in shards])
    with futures.ThreadPoolExecutor(_THREADS) as pool:
      differences = [*pool.map(_difference, self._paths, shards)]
    for path, found in zip(self._paths, differences, strict=True):
      if found is not None:
        msg = f'{path} {found}; copy it again or convert the images again'
        raise ValueError(msg)
    self._records: Any = grain.sources.ArrayRecordDataSource(
      [str(path) for path in self._paths]
    )
    with contextlib.suppress(CorruptImage):
      # Images are sorted by class: the last one has the largest label.
      last = self[len(self) - 1].label if len(self) else -1
      if split == 'train' and last != classes - 1:
        msg = (
          f'{directory} has training images of {last + 1} classes, not of '
          f'{classes} as in {MANIFEST}; convert the images again'
        )
        raise ValueError(msg)

  def __len__(self) -> int:
    """Returns the number of images."""
    return int(self._ends[-1])

  def __getitem__(self, index: int) -> Example:
    """Reads one image; raises a CorruptImage if the record is damaged.

    Raises another ValueError if its label is not that of a class.
    """
    try:
      record = self._records[index]
    except RuntimeError as error:
      msg = f'the record cannot be read: {error}'
      raise CorruptImage(msg) from error
    label = int.from_bytes(record[:_LABEL], 'little')
    if len(record) <= _LABEL or label >= self._classes:
      msg = (
        f'{self.where(index)} has the label {label}, outside of 0 to '
        f'{self._classes - 1}, the classes of {MANIFEST}; convert the images '
        f'again, into an empty directory'
      )
      raise ValueError(msg)
    return Example(record[_LABEL:], label)

  def where(self, index: int) -> str:
    """Returns the path of the shard with an image, and its record number."""
    shard = int(np.searchsorted(self._ends, index, side='right'))
    first = self._ends[shard - 1] if shard else 0
    return f'{self._paths[shard]}, record {index - first}'


# Random access to the images of one split, from several threads.
Source = Files | ShardSource


def check_path(path: pathlib.Path) -> None:
  """Raises a ValueError if ArrayRecord can't open files at a path."""
  try:
    str(path).encode()
  except UnicodeEncodeError:
    msg = f'{path} is not UTF-8; choose another path'
    raise ValueError(msg) from None


def read_manifest(path: pathlib.Path) -> Manifest:
  """Reads a manifest; raises a ValueError if it is not a valid one."""
  check_path(path)
  try:
    if not path.is_file():
      msg = 'it is not a file'
      raise ValueError(msg)  # noqa: TRY301 (reported below, with the path)
    return msgspec.json.decode(path.read_bytes(), type=Manifest)
  except (OSError, ValueError, RecursionError) as error:
    msg = (
      f'{path} is not a manifest of image shards: {str(error)[:300]}; convert '
      f'the images again, into an empty directory'
    )
    raise ValueError(msg) from error


def _difference(path: pathlib.Path, shard: Shard) -> str | None:
  """Describes how a file differs from the manifest, None if it agrees."""
  if not path.is_file():
    return f'is missing; it should contain {shard.images} images'
  try:
    if fingerprint(path) != shard.fingerprint:
      return f'is damaged, or not the file that {MANIFEST} describes'
    records = reader(path)
    images = records.num_records()
    records.close()
  except (OSError, RuntimeError) as error:
    return f'cannot be read: {getattr(error, "strerror", None) or error}'
  if images != shard.images:
    return f'contains {images} images instead of {shard.images}'
  return None
