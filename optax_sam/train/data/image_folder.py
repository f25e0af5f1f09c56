"""Folders of small images, PNG or JPEG, in memory."""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import ImageFile

from optax_sam.train.data import image_files
from optax_sam.train.data.arrays import Part, check_size

_SUFFIXES = ('.png', '.jpg', '.jpeg')
_GRAY = {'1', 'L'}
_COLOR = {'RGB', 'RGBA', 'P', 'CMYK', 'YCbCr', 'LA', 'PA'}


def read(
  directory: pathlib.Path,
  resize: int | None,
  max_pixels: int | None = None,
) -> list[Part]:
  """Reads train/CLASS/*.png and test/CLASS/*.png, or val/ for test/.

  With both test/ and val/, the latter is the validation part. Classes are the
  folders of train/ in alphabetical order. If all images are gray they have one
  channel, else three.

  Args:
    directory: the folder.
    resize: height and width to which images are resized; None if they all have
      one size.
    max_pixels: larger images are refused before they are decoded; None for
      the default.

  Raises:
    ValueError: if a folder is missing, or an image is not valid.
  """
  max_pixels = max_pixels or image_files.MOST_PIXELS
  names = {'train': 'train', 'test': 'test', 'validation': 'val'}
  if not (directory / 'val').is_dir():
    del names['validation']
  elif not (directory / 'test').is_dir():
    names = {'train': 'train', 'test': 'val'}
  _, found = image_files.list_images(directory, [*names.values()], _SUFFIXES)
  files = {part: found[name] for part, name in names.items()}
  paths = {
    part: [own.directory / name for name in own.names]
    for part, own in files.items()
  }
  first = paths['train'][0]
  header = lambda image: (image.size, image.mode)
  size = _read(first, max_pixels, header)[0]
  size = (resize, resize) if resize else size
  modes = set()
  for path in (path for own in paths.values() for path in own):
    own_size, mode = _read(path, max_pixels, header)
    if mode not in _GRAY | _COLOR:
      msg = f'{path} has pixels of mode {mode}; save it with 8 bits'
      raise ValueError(msg)
    if not resize and own_size != size:
      msg = (
        f'{path} has {own_size[0]} x {own_size[1]} pixels and {first} has '
        f'{size[0]} x {size[1]}; give all the same size, or --resize N'
      )
      raise ValueError(msg)
    modes.add(mode)
  mode = 'L' if modes <= _GRAY else 'RGB'
  parts = []
  for part, own in files.items():
    shape = (len(own), *size[::-1], 1 if mode == 'L' else 3)
    check_size(str(own.directory), shape)
    images = np.empty(shape, np.uint8)
    decode = lambda image: image_files.pixels(image, mode, size)
    for number, path in enumerate(paths[part]):
      images[number] = _read(path, max_pixels, decode).reshape(shape[1:])
    where = str(own.directory)
    parts.append(Part(part, images, own.labels, (where, f'{where}: labels')))
  return parts


def _read(
  path: pathlib.Path,
  max_pixels: int,
  read_from: Callable[[ImageFile.ImageFile], Any],
) -> Any:
  """Returns what a function reads from an image."""
  try:
    with path.open('rb') as file:
      return read_from(image_files.opened(file, max_pixels))
  except (OSError, image_files.CorruptImage) as error:
    msg = f'{path} cannot be read: {getattr(error, "strerror", None) or error}'
    raise ValueError(msg) from None
