"""Conversion of an image folder to shards.

A million small files are slow to list and to read from a network disk; a few
hundred large ones are fast. Every image is decoded during the conversion.
Corrupt ones are reported and left out, so a training run on the shards has
none.

A conversion can be interrupted at any time and resumed: a shard gets its name
when it is complete, finished shards are skipped, the manifest is written last.
"""

import errno
import os
import pathlib
from collections.abc import Callable, Iterator
from concurrent import futures

import msgspec
import numpy as np
from array_record.python import array_record_module

from optax_sam.train.config import errors, output_dir
from optax_sam.train.data import image_files
from optax_sam.train.data.image_files import CorruptImage, Example, Files
from optax_sam.train.data.imagenet import shards as shards_lib
from optax_sam.train.data.imagenet import transforms

SPLITS = ('train', 'val')
JPEG = ('.jpeg', '.jpg')
_PARTIAL = '.partial'
_OPTIONS = 'group_size:1,uncompressed'
# Images that are read before they are written.
_AHEAD = 256
_MOST_SHARDS = 10**5 - 1

Loaded = Iterator[Example | CorruptImage]


def convert(
  source: pathlib.Path,
  target: pathlib.Path,
  *,
  shards: int,
  threads: int = 16,
  max_pixels: int = image_files.MOST_PIXELS,
  say: Callable[[str], None],
) -> shards_lib.Manifest:
  """Converts an image folder, or resumes that; returns the manifest.

  Args:
    source: the image folder.
    target: a new or empty directory, or that of an interrupted conversion.
    shards: number of shards of the training images, at most one per image.
      Validation shards have the same size.
    threads: images that are read and checked concurrently, at least 1.
    max_pixels: larger images are left out, without decoding them.
    say: called with a message for every shard and every omitted image.

  Raises:
    ValueError: if the folder, the number of shards or the content of `target`
      is invalid; in one line.
    OSError: if the shards cannot be written.
  """
  given = {'shards': shards, 'threads': threads, 'max-pixels': max_pixels}
  for flag, value in given.items():
    if not 1 <= value < 2**31:
      msg = f'--{flag} must be at least 1 and below 2^31, not {value}'
      raise ValueError(msg)
  if target == pathlib.Path():
    msg = '--output must be the path of a directory, not empty or .'
    raise ValueError(msg)
  shards_lib.check_path(target)
  classes, splits = image_files.list_images(
    source, SPLITS, JPEG, same_classes=True
  )
  images = len(splits['train'])
  if shards > min(images, _MOST_SHARDS):
    msg = (
      f'--shards must be at most {min(images, _MOST_SHARDS)}, not {shards}: '
      f'there are {images} training images'
    )
    raise ValueError(msg)
  paths = {
    split: [
      target / name
      for name in shards_lib.shard_names(
        split, max(1, round(shards * len(files) / images))
      )
    ]
    for split, files in splits.items()
  }
  manifest_path = target / shards_lib.MANIFEST
  _check_target(target, [manifest_path, *paths['train'], *paths['val']])
  for split, files in splits.items():
    transforms.check_any(files, source / split, max_pixels)
  target.mkdir(parents=True, exist_ok=True)
  with output_dir.locked(target), futures.ThreadPoolExecutor(threads) as pool:
    written = {}
    for split, files in splits.items():
      parts = np.array_split(np.arange(len(files)), len(paths[split]))
      written[split] = tuple(
        _shard(files, part, path, max_pixels, pool, say)
        for part, path in zip(parts, paths[split], strict=True)
      )
    shards_lib.ShardSource(target, 'train', written['train'], len(classes))
    # Names are not always text.
    classes = tuple(map(errors.printable, classes))
    manifest = shards_lib.Manifest(shards_lib.FORMAT, classes, **written)
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    temporary = manifest_path.with_name(manifest_path.name + _PARTIAL)
    temporary.write_bytes(text + b'\n')
    temporary.replace(manifest_path)
  return manifest


def _check_target(target: pathlib.Path, paths: list[pathlib.Path]) -> None:
  """Raises a ValueError if the target has files of something else."""
  own = {path.name + ending for path in paths for ending in ('', _PARTIAL)}
  found = {x.name for x in target.iterdir()} if target.is_dir() else set()
  foreign = found - own - {output_dir.LOCK}
  if foreign:
    msg = (
      f'{target} contains {min(foreign)!r}, which is not of this conversion; '
      f'choose an empty or new directory'
    )
    raise ValueError(msg)


def _shard(
  files: Files,
  part: np.ndarray,
  path: pathlib.Path,
  max_pixels: int,
  pool: futures.Executor,
  say: Callable[[str], None],
) -> shards_lib.Shard:
  """Writes a shard, unless it is finished."""

  def load(index: int) -> Example | CorruptImage:
    example = files[index]
    try:
      transforms.check(example.content, max_pixels)
    except CorruptImage as error:
      return CorruptImage(f'{files.where(index)} is left out: {error}')
    return example

  indices = part.tolist()
  images = _finished(path, map(load, indices), map(load, indices[::-1]))
  done = ' exists' if images else ''
  if not images:
    starts = range(0, len(indices), _AHEAD)
    images = _write(
      path,
      (x for k in starts for x in pool.map(load, indices[k : k + _AHEAD])),
      say,
    )
  say(f'{path.name}{done}, {images} images')
  return shards_lib.Shard(images, shards_lib.fingerprint(path))


def _finished(path: pathlib.Path, *from_the_ends: Loaded) -> int:
  """Returns the number of images of a finished shard, 0 to write it.

  Raises a ValueError if its first or last image is another one.
  """
  if not path.exists():
    return 0
  try:
    reader = shards_lib.reader(path)
    images = reader.num_records()
    ends = reader.read([0, images - 1]) if images else []
    reader.close()
  except RuntimeError:  # damaged
    return 0
  for record, loaded in zip(ends, from_the_ends, strict=False):
    intact = next((x for x in loaded if isinstance(x, Example)), None)
    if intact is None or record != shards_lib.encode(intact):
      msg = (
        f'{path} is a shard of other images; choose an empty or new directory'
      )
      raise ValueError(msg)
  return images


def _write(
  path: pathlib.Path, loaded: Loaded, say: Callable[[str], None]
) -> int:
  """Writes a shard, which gets its name when it is complete."""
  temporary = path.with_name(path.name + _PARTIAL)
  images = 0
  try:
    writer = array_record_module.ArrayRecordWriter(str(temporary), _OPTIONS)
    try:
      for example in loaded:
        if isinstance(example, CorruptImage):
          say(str(example))
          continue
        writer.write(shards_lib.encode(example))
        images += 1
    finally:
      writer.close()
    reader = shards_lib.reader(temporary)
    if reader.num_records() != images:  # not every failed write raises
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    reader.close()
    temporary.replace(path)
  except RuntimeError as error:  # ArrayRecord could not write
    raise OSError(errno.EIO, str(error), str(path)) from error
  finally:
    temporary.unlink(missing_ok=True)
  return images
