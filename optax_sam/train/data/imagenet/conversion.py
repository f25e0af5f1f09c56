"""Conversion of an image folder to shards.

Every image is decoded; corrupt ones are reported and left out. An interrupted
conversion can be resumed: a shard gets its name when it is complete, finished
shards are skipped, the manifest is written last. `.conversion` identifies the
images, so that no other conversion is resumed.
"""

import contextlib
import errno
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterator
from concurrent import futures

import msgspec
import numpy as np
from array_record.python import array_record_module

from optax_sam.train.config import errors, output_dir
from optax_sam.train.data import image_files
from optax_sam.train.data.image_files import CorruptImage, Files
from optax_sam.train.data.imagenet import shards as shards_lib
from optax_sam.train.data.imagenet import transforms

_PLAN = '.conversion'
# Images that are read before they are written.
_AHEAD = 256


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

  For the arguments see the flags of `convert`; `say` is called with a message
  for every shard and every omitted image.
  """
  if target == pathlib.Path():
    msg = '--output must be the path of a directory, not empty or .'
    raise ValueError(msg)
  classes, splits = shards_lib.folder(source)
  images = len(splits['train'])
  if not 1 <= shards <= images:
    msg = (
      f'--shards must be from 1 to {images}, the number of training images, '
      f'not {shards}'
    )
    raise ValueError(msg)
  names = [files.names for files in splits.values()]
  given = repr([shards, max_pixels, names])
  plan = hashlib.sha256(given.encode()).hexdigest()
  _check_target(target, plan)
  for split, files in splits.items():
    transforms.check_any(files, source / split, max_pixels)
  target.mkdir(parents=True, exist_ok=True)
  with output_dir.locked(target), futures.ThreadPoolExecutor(threads) as pool:
    output_dir.write(target / _PLAN, plan.encode())
    written = {}
    for split, files in splits.items():
      count = max(1, round(shards * len(files) / images))
      paths = shards_lib.shard_paths(target, split, count)
      parts = np.array_split(np.arange(len(files)), count)
      for path, part in zip(paths, parts, strict=True):
        found = _records(path)
        if not found:
          _write(path, _loaded(files, part.tolist(), max_pixels, pool, say))
        done = ' exists' if found else ''
        say(f'{path.name}{done}, {found or _records(path)} images')
      written[split] = tuple(map(shards_lib.fingerprint, paths))
    # Names are not always text.
    classes = tuple(map(errors.printable, classes))
    manifest = shards_lib.Manifest(classes, **written)
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    output_dir.write(target / shards_lib.MANIFEST, text + b'\n')
  return manifest


def _check_target(target: pathlib.Path, plan: str) -> None:
  """Raises a ValueError if the target has files of something else."""
  path = target / _PLAN
  if path.is_file() and path.read_bytes() == plan.encode():
    return
  found = {x.name for x in target.iterdir()} if target.is_dir() else set()
  found -= {output_dir.LOCK, output_dir.unfinished(path).name}
  if found:
    msg = (
      f'{target} contains {min(found)!r}, which is not of this conversion; '
      f'choose an empty or new directory'
    )
    raise ValueError(msg)


def _loaded(
  files: Files,
  indices: list[int],
  max_pixels: int,
  pool: futures.Executor,
  say: Callable[[str], None],
) -> Iterator[bytes]:
  """Yields the records of the images that can be decoded."""

  def load(index: int) -> bytes | CorruptImage:
    example = files[index]
    try:
      transforms.check(example.content, max_pixels)
    except CorruptImage as error:
      return error
    return shards_lib.encode(example)

  for start in range(0, len(indices), _AHEAD):
    some = indices[start : start + _AHEAD]
    for index, record in zip(some, pool.map(load, some), strict=True):
      if isinstance(record, CorruptImage):
        say(f'{files.where(index)} is left out: {record}')
      else:
        yield record


def _records(path: pathlib.Path) -> int:
  """Returns the number of images of a shard, 0 if it is missing or damaged."""
  try:
    reader = array_record_module.ArrayRecordReader(str(path))
    count = reader.num_records()
    reader.close()
  except RuntimeError:
    return 0
  return count


def _write(path: pathlib.Path, records: Iterator[bytes]) -> None:
  """Writes a shard, which gets its name when it is complete."""
  temporary = output_dir.unfinished(path)
  count = 0
  try:
    writer = array_record_module.ArrayRecordWriter(
      str(temporary), 'group_size:1,uncompressed'
    )
    with contextlib.closing(writer):
      for count, record in enumerate(records, start=1):  # noqa: B007
        writer.write(record)
    if _records(temporary) != count:  # not every failed write raises
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    temporary.replace(path)
  except RuntimeError as error:  # ArrayRecord could not write
    raise OSError(errno.EIO, str(error), str(path)) from error
  finally:
    temporary.unlink(missing_ok=True)
