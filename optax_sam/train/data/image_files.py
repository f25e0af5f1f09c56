"""Folders of PNG and JPEG files, `DIR/train/CLASS/FILE`.

Images are sorted by class and name. Hidden files are ignored. Any other entry
is an error: otherwise a model would train on fewer images than expected.
"""

import dataclasses
import io
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import ImageFile, JpegImagePlugin, PngImagePlugin

from optax_sam.train.data.arrays import Parts, check_size, readable

# Of one image: 200 MB when it is decoded.
MOST_PIXELS = 2**26
_MODES = ('1', 'L', 'RGB', 'RGBA', 'P', 'CMYK', 'YCbCr', 'LA', 'PA')


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
    with readable(self.where(index)):
      content = (self.directory / self.names[index]).read_bytes()
    return Example(content, int(self.labels[index]))

  def where(self, index: int) -> str:
    """Returns the path of an image."""
    return str(self.directory / self.names[index])


def read_folder(
  directory: pathlib.Path, resize: int | None, max_pixels: int
) -> Parts:
  """Reads train/CLASS/*.png and test/CLASS/*.png, or val/ for test/.

  With both test/ and val/, the latter is the validation part. If all images are
  gray they have one channel, else three.
  """
  names = {'train': 'train', 'test': 'test', 'validation': 'val'}
  if not (directory / 'val').is_dir():
    del names['validation']
  elif not (directory / 'test').is_dir():
    names = {'train': 'train', 'test': 'val'}
  _, files = list_images(
    directory, [*names.values()], ('.png', '.jpg', '.jpeg')
  )
  first, size, is_gray = '', (resize, resize) if resize else None, True
  parts = {}
  for part, name in names.items():
    own, images = files[name], np.empty(0)
    for index in range(len(own)):
      where = own.where(index)
      with readable(where):
        image = opened(own[index].content, max_pixels)
      first, size = first or where, size or image.size
      if not resize and image.size != size:
        msg = (
          f'{where} has {image.width} x {image.height} pixels and {first} has '
          f'{size[0]} x {size[1]}; give all the same size, or --resize N'
        )
        raise ValueError(msg)
      if index == 0:
        shape = (len(own), *size[::-1], 3)
        check_size(str(own.directory), shape)
        images = np.empty(shape, np.uint8)
      with readable(where):
        images[index] = decoded(image, size)
      is_gray &= image.mode in ('1', 'L')
    parts[part] = images, own.labels
  channels = 1 if is_gray else 3
  return {part: (x[..., :channels], y) for part, (x, y) in parts.items()}


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
      msg = (
        f'{directory}: {min(alone)} is a folder of {splits[0]} or of {split} '
        f'only; give both the same class folders'
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
  advice = f'it should contain {content}'
  with readable(directory, advice), os.scandir(directory) as scanned:
    entries = [entry for entry in scanned if not entry.name.startswith('.')]

  def is_valid(entry: os.DirEntry[str]) -> bool:
    if not suffixes:
      return entry.is_dir()
    return entry.name.lower().endswith(suffixes) and entry.is_file()

  wrong = [entry.path for entry in entries if not is_valid(entry)]
  if wrong or not entries:
    problem = f'{wrong[0]} does not belong here' if wrong else 'it is empty'
    msg = f'{directory} should contain {content}: {problem}'
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
  if image.mode not in _MODES:
    msg = f'it has pixels of mode {image.mode}; save it with 8 bits'
    raise CorruptImage(msg)
  return image


def decoded(
  image: ImageFile.ImageFile, size: tuple[int, int] | None = None
) -> np.ndarray:
  """Decodes an image to RGB, resized to a width and height.

  Raises a CorruptImage if it is damaged.
  """
  try:
    converted = image.convert('RGB')
    return np.asarray(converted.resize(size) if size else converted)
  except Exception as error:
    msg = f'it cannot be decoded: {error}'
    raise CorruptImage(msg) from error
