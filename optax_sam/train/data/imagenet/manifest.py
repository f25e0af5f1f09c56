"""The manifest: a file that lists the shards and their content.

It is JSON, named `unfinished.json` during a conversion and `manifest.json` when
all shards exist and are counted::

    {"format": "optax_sam image shards", "version": 1,
     "classes": ["n01440764", ...], "fingerprint": "...",
     "splits": {"train": {"images": 1281167, "shard_count": 256, "shards": {
       "train-00000-of-00256.array_record":
         {"examples": 5004, "bytes": 573824000, "corrupt": {}}, ...}}, ...}}

`images` is the number of images in the converted folder. `corrupt` maps the
names of those that could not be decoded, and are in no shard, to their index in
the sorted folder. `fingerprint` identifies the folder.
"""

import dataclasses
import json
import pathlib
from typing import Any

MANIFEST = 'manifest.json'
UNFINISHED = 'unfinished.json'
_FORMAT = 'optax_sam image shards'
_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Shard:
  """The expected content of one file.

  Attributes:
    examples: number of records.
    bytes: size of the file.
    corrupt: names of omitted images, with their indices in the folder.
  """

  examples: int
  bytes: int
  corrupt: dict[str, int]


@dataclasses.dataclass
class Split:
  """The shards of one split.

  Attributes:
    images: number of images in the folder, corrupt ones included.
    shard_count: number of shards of a finished conversion.
    shards: the existing shards, by file name.
  """

  images: int
  shard_count: int
  shards: dict[str, Shard] = dataclasses.field(default_factory=dict)

  @property
  def examples(self) -> int:
    """Number of records in the existing shards."""
    return sum(shard.examples for shard in self.shards.values())

  @property
  def corrupt(self) -> dict[str, int]:
    """The images that these shards omit."""
    return {
      name: place
      for shard in self.shards.values()
      for name, place in shard.corrupt.items()
    }


@dataclasses.dataclass
class Manifest:
  """The expected content of a directory of shards.

  Attributes:
    classes: names of the classes in the order of their labels.
    fingerprint: fingerprint of the converted folder.
    splits: the splits by name.
  """

  classes: tuple[str, ...]
  fingerprint: str
  splits: dict[str, Split]

  @property
  def complete(self) -> bool:
    """Whether all shards exist."""
    return all(
      len(split.shards) == split.shard_count for split in self.splits.values()
    )

  def same_conversion(self, other: 'Manifest') -> bool:
    """Returns whether both convert the same images into the same shards."""
    return _plan(self) == _plan(other)


def _plan(manifest: Manifest) -> Any:
  counts = {
    name: (split.images, split.shard_count)
    for name, split in manifest.splits.items()
  }
  return manifest.classes, manifest.fingerprint, counts


def shard_names(split: str, count: int) -> list[str]:
  """Returns the file names of a split.

  >>> shard_names('val', 2)
  ['val-00000-of-00002.array_record', 'val-00001-of-00002.array_record']
  """
  return [f'{split}-{k:05}-of-{count:05}.array_record' for k in range(count)]


def write_manifest(path: pathlib.Path, manifest: Manifest) -> None:
  """Writes a manifest atomically."""
  content = {'format': _FORMAT, 'version': _VERSION}
  content |= dataclasses.asdict(manifest)
  temporary = path.with_name(f'{path.name}.partial')
  temporary.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
  temporary.replace(path)


def read_manifest(path: pathlib.Path) -> Manifest:
  """Reads a manifest.

  Raises:
    ValueError: if the file is not a manifest or is damaged.
  """
  try:
    content = json.loads(path.read_text(encoding='utf-8'))
    if (content['format'], content['version']) != (_FORMAT, _VERSION):
      msg = f'it is of another format, {content["format"]!r}'
      raise ValueError(msg)  # noqa: TRY301 (reported below, with the path)
    return Manifest(
      classes=tuple(content['classes']),
      fingerprint=content['fingerprint'],
      splits={
        name: Split(
          split['images'],
          split['shard_count'],
          {file: Shard(**shard) for file, shard in split['shards'].items()},
        )
        for name, split in content['splits'].items()
      },
    )
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    msg = (
      f'{path} is not a manifest of image shards ({type(error).__name__}: '
      f'{error}); convert the images again, into an empty directory'
    )
    raise ValueError(msg) from error
