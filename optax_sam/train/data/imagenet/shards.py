"""ImageNet on disk: a folder of images, or shards of it.

Shards are a few hundred ArrayRecord files, `train-00000-of-00256.array_record`
and so on. A record is the label (4 bytes, unsigned, little endian) and the file
of an image. The images have the order of the folder. So a seed gives the same
batches from a folder and from its shards, unless the folder has corrupt images,
which the shards omit.

`manifest.json` exists if the conversion is finished. It has the classes, and
for each part the fingerprints of its files, in their order: of the start, the
end and the size of a file. The end has the offsets of all records.
"""

import contextlib
import hashlib
import pathlib
from concurrent import futures
from typing import Annotated, Any, NamedTuple

import grain
import msgspec

from optax_sam.train.data.arrays import readable
from optax_sam.train.data.image_files import (
  CorruptImage,
  Example,
  Files,
  list_images,
)

SPLITS = ('train', 'val')
MANIFEST = 'manifest.json'
_SUFFIX = '.array_record'
_LABEL, _START, _END = 4, 2**16, 2**17  # bytes

_Fingerprints = Annotated[
  tuple[Annotated[str, msgspec.Meta(pattern='^[0-9a-f]{32}$')], ...],
  msgspec.Meta(min_length=1, max_length=99999),
]


class Manifest(
  msgspec.Struct,
  tag='optax_sam image shards 3',
  tag_field='format',
  forbid_unknown_fields=True,
):
  """The expected content of a directory of shards."""

  classes: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
  train: _Fingerprints
  val: _Fingerprints


class ShardSource:
  """The images of one split."""

  def __init__(
    self, directory: pathlib.Path, split: str, manifest: Manifest
  ) -> None:
    """Opens shards; raises a ValueError if one is missing or differs."""
    expected = getattr(manifest, split)
    paths = shard_paths(directory, split, len(expected))
    with futures.ThreadPoolExecutor() as pool:
      found = [*pool.map(fingerprint, paths)]
    for path, one, other in zip(paths, found, expected, strict=True):
      if one != other:
        problem = (
          'is damaged, or not' if one else 'cannot be read: it should be'
        )
        msg = (
          f'{path} {problem} the file that {MANIFEST} describes; copy it again '
          f'or convert the images again'
        )
        raise ValueError(msg)
    self._name = f'{directory}, {split} image'
    self._classes = len(manifest.classes)
    self._records: Any = grain.sources.ArrayRecordDataSource(
      [str(path) for path in paths]
    )

  def __len__(self) -> int:
    """Returns the number of images."""
    return len(self._records)

  def __getitem__(self, index: int) -> Example:
    """Reads one image; raises a CorruptImage if the record is damaged."""
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
    """Returns the directory of an image, and its number."""
    return f'{self._name} {index}'


# Random access to the images of one split, from several threads.
Source = Files | ShardSource


class Images(NamedTuple):
  """Training and validation images; a label is an index into the classes."""

  train: Source
  val: Source
  classes: tuple[str, ...]


def open_images(directory: pathlib.Path) -> Images:
  """Opens a directory with `manifest.json`, or with folders `train` and `val`.

  Raises a ValueError, with path and remedy, if something is missing or differs
  from what is expected.
  """
  path = directory / MANIFEST
  if path.exists():
    with readable(path, 'convert the images again, into an empty directory'):
      if not path.is_file():  # reading a pipe could block forever
        msg = 'it is not a file'
        raise ValueError(msg)
      found = msgspec.json.decode(path.read_bytes(), type=Manifest)
    train, val = (ShardSource(directory, split, found) for split in SPLITS)
    for source in (train, val):
      with contextlib.suppress(CorruptImage, IndexError):
        # Images are sorted by class: the last one has the largest label.
        source[len(source) - 1]
    return Images(train, val, found.classes)
  problem = ''
  if not directory.is_dir():
    problem = 'is not a directory; give that of the images'
  elif any(directory.glob(f'*{_SUFFIX}*')):
    problem = 'is a conversion that was interrupted; run it again to resume it'
  elif not any((directory / split).exists() for split in SPLITS):
    problem = f'has neither {MANIFEST} nor the folders train and val'
  if problem:
    msg = f'{directory} {problem}'
    raise ValueError(msg)
  classes, files = folder(directory)
  return Images(files['train'], files['val'], classes)


def folder(
  directory: pathlib.Path,
) -> tuple[tuple[str, ...], dict[str, Files]]:
  """Returns the classes of an image folder, and its images by split."""
  suffixes = ('.jpeg', '.jpg')
  return list_images(directory, SPLITS, suffixes, same_classes=True)


def shard_paths(
  directory: pathlib.Path, split: str, count: int
) -> list[pathlib.Path]:
  """Returns the files of a split."""
  names = (f'{split}-{k:05}-of-{count:05}{_SUFFIX}' for k in range(count))
  return [directory / name for name in names]


def encode(example: Example) -> bytes:
  """Returns the record of an image."""
  return example.label.to_bytes(_LABEL, 'little') + example.content


def fingerprint(path: pathlib.Path) -> str:
  """Returns what identifies a shard, '' if it is missing."""
  if not path.is_file():
    return ''
  with readable(path), path.open('rb') as file:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode() + file.read(_START))
    file.seek(max(0, size - _END))
    digest.update(file.read(_END))
  return digest.hexdigest()[:32]
