"""Folders of PNG and JPEG files: their listing, and decoding by Pillow.

In `DIR/train/CLASS/FILE`, the classes are the sorted names of the folders, and
the images are sorted by class and name. Hidden files are ignored. Any other
entry is an error: otherwise a model would silently train on fewer images than
the user expects.
"""

import dataclasses
import io
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import ImageFile, JpegImagePlugin, PngImagePlugin

# Of one image: 200 MB when it is decoded.
MOST_PIXELS = 2**26


class CorruptImage(ValueError):  # noqa: N818 (not an error)
  """An image that is damaged or too large to be decoded."""


class Example(NamedTuple):
  """The content of an image file, and the index of its class."""

  content: bytes
  label: int


@dataclasses.dataclass(frozen=True)
class Files:
  """The images of one part, sorted by class and name: `CLASS/FILE`."""

  directory: pathlib.Path
  names: list[str]
  labels: np.ndarray

  def __len__(self) -> int:
    """Returns the number of images."""
    return len(self.names)

  def __getitem__(self, index: int) -> Example:
    """Reads one image; raises a ValueError if the file cannot be read."""
    path = self.directory / self.names[index]
    try:
      return Example(path.read_bytes(), int(self.labels[index]))
    except OSError as error:
      msg = f'{path} cannot be read: {error.strerror or error}'
      raise ValueError(msg) from error

  def where(self, index: int) -> str:
    """Returns the path of an image."""
    return str(self.directory / self.names[index])


def list_images(
  directory: pathlib.Path,
  splits: Sequence[str],
  suffixes: tuple[str, ...],
  *,
  same_classes: bool = False,
) -> tuple[tuple[str, ...], dict[str, Files]]:
  """Returns the classes of a folder and the images of its parts.

  The first part is that of training, and has all classes. The suffixes are in
  lower case. Raises a ValueError if a path is missing, empty or misplaced.
  """
  classes = _entries(directory / splits[0])
  files = {}
  for split in splits:
    own = _entries(directory / split)
    alone = set(own) - set(classes)
    alone |= set(classes) - set(own) if same_classes else set()
    if alone:
      name, pair = min(alone), (split, splits[0])
      here, there = pair[::-1] if name in classes else pair
      msg = (
        f'{directory / here / name} has no counterpart in {directory / there}; '
        f'give both the same class folders'
      )
      raise ValueError(msg)
    names, labels = [], []
    for name in own:
      images = _entries(directory / split / name, suffixes)
      names += [f'{name}/{image}' for image in images]
      labels += [classes.index(name)] * len(images)
    files[split] = Files(directory / split, names, np.array(labels, np.int32))
  return tuple(classes), files


def _entries(
  directory: pathlib.Path, suffixes: tuple[str, ...] = ()
) -> list[str]:
  """Returns the names of files with these suffixes, without any of folders."""
  content = ' or '.join(suffixes) or 'one folder for each class'
  try:
    with os.scandir(directory) as scanned:
      entries = [entry for entry in scanned if not entry.name.startswith('.')]
  except OSError as error:
    msg = (
      f'{directory} cannot be listed: {error.strerror or error}; it should '
      f'contain {content}'
    )
    raise ValueError(msg) from error
  if not entries:
    msg = f'{directory} is empty; it should contain {content}'
    raise ValueError(msg)
  for entry in entries:
    is_image = entry.name.lower().endswith(suffixes) and entry.is_file()
    if not (is_image if suffixes else entry.is_dir()):
      msg = (
        f'{entry.path} does not belong here: {directory} contains {content}; '
        f'move or remove it'
      )
      raise ValueError(msg)
  return sorted(entry.name for entry in entries)


def check_pixels(width: int, height: int, most: int) -> None:
  """Raises a CorruptImage if an image has more than `most` pixels."""
  if width * height > most:
    msg = (
      f'it has {width} x {height} pixels, more than --max-pixels {most}; '
      f'resize it'
    )
    raise CorruptImage(msg)


def opened(content: bytes, max_pixels: int) -> ImageFile.ImageFile:
  """Reads the header of a PNG or JPEG file, before anything is allocated."""
  # `Image.open` would print a warning for large images, from any thread.
  is_png = content.startswith(b'\x89PNG')
  plugin = (
    PngImagePlugin.PngImageFile if is_png else JpegImagePlugin.JpegImageFile
  )
  try:
    image = plugin(io.BytesIO(content))
  except Exception as error:  # damage raises many types
    msg = 'it is not PNG or JPEG'
    raise CorruptImage(msg) from error
  check_pixels(*image.size, max_pixels)
  return image


def decoded(
  content: bytes,
  max_pixels: int,
  mode: str = 'RGB',
  size: tuple[int, int] | None = None,
) -> np.ndarray:
  """Decodes an image, and resizes it to width and height if they are given.

  Raises a CorruptImage if it is damaged, no PNG or JPEG, or has more pixels.
  """
  image = opened(content, max_pixels)
  try:
    converted = image.convert(mode)
    if size is not None and size != converted.size:
      converted = converted.resize(size)
    return np.asarray(converted)
  except Exception as error:
    msg = f'it cannot be decoded: {error}'
    raise CorruptImage(msg) from error
