"""The file beside the shards that says what they should hold.

It is JSON, called `unfinished.json` while a conversion is under way and
`manifest.json` when all shards are there and counted::

    {"format": "optax_sam image shards", "version": 1,
     "classes": ["n01440764", ...], "fingerprint": "...",
     "splits": {"train": {"images": 1281167, "shard_count": 256, "shards": {
       "train-00000-of-00256.array_record":
         {"examples": 5004, "bytes": 573824000, "corrupt": {}}, ...}}, ...}}

`images` are those of the folder that was converted; `corrupt` are the names of
those among them that could not be decoded and are in no shard, each with its
place in the sorted folder. `fingerprint` tells one folder from another.
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
  """What one file should hold.

  Attributes:
    examples: number of records.
    bytes: size of the file.
    corrupt: names of the images left out, and their places in the folder.
  """

  examples: int
  bytes: int
  corrupt: dict[str, int]


@dataclasses.dataclass
class Split:
  """The shards of one split.

  Attributes:
    images: number of images in the folder, corrupt ones included.
    shard_count: number of shards when all are there.
    shards: those that are there, by the names of their files.
  """

  images: int
  shard_count: int
  shards: dict[str, Shard] = dataclasses.field(default_factory=dict)

  @property
  def examples(self) -> int:
    """Number of records in the shards that are there."""
    return sum(shard.examples for shard in self.shards.values())

  @property
  def corrupt(self) -> dict[str, int]:
    """The images that these shards leave out."""
    return {
      name: place
      for shard in self.shards.values()
      for name, place in shard.corrupt.items()
    }


@dataclasses.dataclass
class Manifest:
  """What a directory of shards should hold.

  Attributes:
    classes: names of the classes in the order of their labels.
    fingerprint: of the folder that was converted.
    splits: by name.
  """

  classes: tuple[str, ...]
  fingerprint: str
  splits: dict[str, Split]

  @property
  def complete(self) -> bool:
    """Whether all shards are there."""
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
  """Returns the names of the files of a split.

  >>> shard_names('val', 2)
  ['val-00000-of-00002.array_record', 'val-00001-of-00002.array_record']
  """
  return [f'{split}-{k:05}-of-{count:05}.array_record' for k in range(count)]


def write_manifest(path: pathlib.Path, manifest: Manifest) -> None:
  """Writes a manifest, whole or not at all."""
  content = {'format': _FORMAT, 'version': _VERSION}
  content |= dataclasses.asdict(manifest)
  temporary = path.with_name(f'{path.name}.partial')
  temporary.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
  temporary.replace(path)


def read_manifest(path: pathlib.Path) -> Manifest:
  """Reads a manifest.

  Raises:
    ValueError: if it isn't one, or is damaged.
  """
  try:
    content = json.loads(path.read_text(encoding='utf-8'))
    if (content['format'], content['version']) != (_FORMAT, _VERSION):
      msg = f'it is of another format, {content["format"]!r}'
      raise ValueError(msg)  # noqa: TRY301 (said below, with the path)
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
