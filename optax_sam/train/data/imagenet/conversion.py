"""Conversion of an image folder to shards.

A million small files are slow to list and to read from a network disk; a few
hundred large ones are fast. Every image is decoded during the conversion.
Corrupt ones are reported, left out and listed in the manifest, so a training
run on the shards has none.

A conversion can be interrupted at any time and resumed. A shard gets its final
name when it is complete. `unfinished.json` lists the shards and describes the
conversion; it is renamed to `manifest.json` when all shards have been counted.
"""

import collections
import hashlib
import itertools
import pathlib
from collections.abc import Callable, Iterator
from concurrent import futures

import numpy as np
from array_record.python import array_record_module

from optax_sam.train.data.imagenet import shards as shards_lib
from optax_sam.train.data.imagenet import transforms
from optax_sam.train.data.imagenet.folder import FolderSource, list_folder
from optax_sam.train.data.imagenet.manifest import (
  MANIFEST,
  UNFINISHED,
  Manifest,
  Shard,
  Split,
  read_manifest,
  shard_names,
  write_manifest,
)
from optax_sam.train.data.imagenet.sources import CorruptImage, Example

_OPTIONS = 'group_size:1,uncompressed'
# Images that are read before they are written.
_AHEAD = 256


def convert(
  source: pathlib.Path,
  target: pathlib.Path,
  *,
  shards: int,
  threads: int = 16,
  say: Callable[[str], None],
) -> Manifest:
  """Converts an image folder, or resumes an interrupted conversion.

  Args:
    source: the image folder.
    target: a new or empty directory, or that of an interrupted conversion.
    shards: number of shards of the training images, at most one per image.
      Validation shards have the same size.
    threads: images that are read and checked concurrently, at least 1.
    say: called with a message for every shard and every omitted image.

  Returns:
    The manifest that was written.

  Raises:
    ValueError: if the folder, the number of shards or the content of `target`
      is invalid; in one line.
    OSError: if the shards cannot be written.
  """
  for flag, value in (('--shards', shards), ('--threads', threads)):
    if value < 1:
      msg = f'{flag} must be at least 1, not {value}'
      raise ValueError(msg)
  classes, sources = list_folder(source)
  plan = _plan(sources, classes, shards)
  manifest = _earlier(target, plan, say) or plan
  if (target / MANIFEST).exists() and manifest.complete:
    say(f'{target} is converted already')
    return manifest
  target.mkdir(parents=True, exist_ok=True)
  write_manifest(target / UNFINISHED, manifest)
  (target / MANIFEST).unlink(missing_ok=True)
  with futures.ThreadPoolExecutor(threads) as pool:
    for name in manifest.splits:
      _convert_split(sources[name], target, name, manifest, pool, say)
  for name, split in manifest.splits.items():
    _verify(target, name, split)
  (target / UNFINISHED).replace(target / MANIFEST)
  return manifest


def _plan(
  sources: dict[str, FolderSource], classes: tuple[str, ...], shards: int
) -> Manifest:
  images = {name: len(source) for name, source in sources.items()}
  if shards > images['train']:
    msg = (
      f'--shards must be at most the number of training images, '
      f'{images["train"]}, not {shards}'
    )
    raise ValueError(msg)
  digest = hashlib.sha256()
  for name, source in sources.items():
    for index in range(len(source)):
      digest.update(f'{name}/{source.name(index)}\0'.encode())
  counts = {
    name: max(1, round(shards * count / images['train']))
    for name, count in images.items()
  }
  splits = {name: Split(images[name], counts[name]) for name in sources}
  return Manifest(classes, digest.hexdigest(), splits)


def _earlier(
  target: pathlib.Path, plan: Manifest, say: Callable[[str], None]
) -> Manifest | None:
  """Returns the manifest of an interrupted conversion, None without one.

  Shards that are no longer complete are removed from it.

  Raises:
    ValueError: if the directory has other files.
  """
  if target.is_symlink() and not target.exists():
    msg = f'{target} is a broken link; choose another directory'
    raise ValueError(msg)
  if not target.exists():
    return None
  if not target.is_dir():
    msg = f'{target} is not a directory; choose another one'
    raise ValueError(msg)
  entries = sorted(entry.name for entry in target.iterdir())
  if set(entries) <= {f'{UNFINISHED}.partial'}:  # stopped before it began
    return None
  found = [name for name in (UNFINISHED, MANIFEST) if name in entries]
  if not found:
    msg = (
      f'{target} contains {entries[0]!r} and is not a conversion; '
      f'choose an empty or new directory'
    )
    raise ValueError(msg)
  earlier = read_manifest(target / found[0])
  if not earlier.same_conversion(plan):
    msg = (
      f'{target} is a conversion of other images or into another number of '
      f'shards; choose an empty or new directory'
    )
    raise ValueError(msg)
  _refuse_foreign(target, entries, plan)
  for split in earlier.splits.values():
    for file, shard in list(split.shards.items()):
      difference = shards_lib.difference(target / file, shard)
      if difference is not None:
        say(f'{target / file} {difference}; it is rewritten')
        del split.shards[file]
  return earlier


def _refuse_foreign(
  target: pathlib.Path, entries: list[str], plan: Manifest
) -> None:
  ours = [MANIFEST, UNFINISHED]
  for name, split in plan.splits.items():
    ours += shard_names(name, split.shard_count)
  foreign = set(entries) - {*ours, *(f'{name}.partial' for name in ours)}
  if foreign:
    msg = (
      f'{target} also contains {min(foreign)!r}, which is not a shard; '
      f'remove it or choose another directory'
    )
    raise ValueError(msg)


def _convert_split(
  source: FolderSource,
  target: pathlib.Path,
  name: str,
  manifest: Manifest,
  pool: futures.Executor,
  say: Callable[[str], None],
) -> None:
  """Writes the shards of a split that are missing."""
  split = manifest.splits[name]
  files = shard_names(name, split.shard_count)
  parts = np.array_split(shards_lib.spread(split.images), split.shard_count)
  for number, (file, part) in enumerate(zip(files, parts, strict=True), 1):
    progress = f'{name} {number}/{split.shard_count}: {file}'
    if file in split.shards:
      say(f'{progress} exists, {split.shards[file].examples} images')
      continue
    shard = _write(source, part, target / file, pool, say)
    split.shards[file] = shard
    write_manifest(target / UNFINISHED, manifest)
    say(f'{progress}, {shard.examples} images')
  # Shards are listed in the order of their records.
  split.shards = {file: split.shards[file] for file in files}
  write_manifest(target / UNFINISHED, manifest)


def _write(
  source: FolderSource,
  places: np.ndarray,
  path: pathlib.Path,
  pool: futures.Executor,
  say: Callable[[str], None],
) -> Shard:
  """Writes a shard, which gets its final name when it is complete."""
  temporary = path.with_name(f'{path.name}.partial')
  corrupt: dict[str, int] = {}
  examples = 0
  try:
    writer = array_record_module.ArrayRecordWriter(str(temporary), _OPTIONS)
    try:
      for place, example in _checked(source, places, pool):
        if example is None:
          say(f'{source.where(place)} cannot be decoded and is left out')
          corrupt[source.name(place)] = place
        else:
          writer.write(shards_lib.encode(example))
          examples += 1
    finally:
      writer.close()
    shard = Shard(examples, temporary.stat().st_size, corrupt)
    difference = shards_lib.difference(temporary, shard)
    if difference is not None:
      msg = f'{difference}; is there room on the disk?'
      raise OSError(0, msg, str(path))
    temporary.replace(path)
  except RuntimeError as error:  # ArrayRecord could not write
    raise OSError(0, str(error), str(path)) from error
  finally:
    temporary.unlink(missing_ok=True)
  return shard


def _checked(
  source: FolderSource, places: np.ndarray, pool: futures.Executor
) -> Iterator[tuple[int, Example | None]]:
  """Yields indices with their images in order, None for corrupt ones.

  A fixed number is read in advance, so that the threads never wait for the
  writer and memory is bounded.
  """

  def load(place: int) -> Example | None:
    example = source[place]
    try:
      transforms.check(example.jpeg)
    except CorruptImage:
      return None
    return example

  waiting = iter(places.tolist())
  ahead = collections.deque(
    (place, pool.submit(load, place))
    for place in itertools.islice(waiting, _AHEAD)
  )
  try:
    while ahead:
      place, loaded = ahead.popleft()
      yield place, loaded.result()
      for later in itertools.islice(waiting, 1):
        ahead.append((later, pool.submit(load, later)))
  finally:
    for _, loaded in ahead:
      loaded.cancel()


def _verify(target: pathlib.Path, name: str, split: Split) -> None:
  """Checks the shards and counts their images.

  Raises:
    ValueError: if a shard has changed or an image is missing.
  """
  for file, shard in split.shards.items():
    difference = shards_lib.difference(target / file, shard)
    if difference is not None:
      msg = f'{target / file} {difference}; run the conversion again'
      raise ValueError(msg)
  found = split.examples + len(split.corrupt)
  if found != split.images:
    msg = f'{found} of {split.images} images of {name} are accounted for'
    raise ValueError(msg)
  if not split.examples:
    msg = f'none of the {split.images} images of {name} can be decoded'
    raise ValueError(msg)
