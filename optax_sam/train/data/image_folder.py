"""Folders of small images, PNG or JPEG, in memory."""

import pathlib

import numpy as np

from optax_sam.train.data import image_files
from optax_sam.train.data.arrays import Part, check_size, readable

_SUFFIXES = ('.png', '.jpg', '.jpeg')
_GRAY = {'1', 'L'}
_COLOR = {'RGB', 'RGBA', 'P', 'CMYK', 'YCbCr', 'LA', 'PA'}


def read(
  directory: pathlib.Path, resize: int | None, max_pixels: int
) -> list[Part]:
  """Reads train/CLASS/*.png and test/CLASS/*.png, or val/ for test/.

  With both test/ and val/, the latter is the validation part. Classes are the
  folders of train/ in alphabetical order. If all images are gray they have one
  channel, else three.

  Images are resized to height and width `resize`; without it they must have one
  size. Those with more than `max_pixels` are refused before they are decoded.
  """
  names = {'train': 'train', 'test': 'test', 'validation': 'val'}
  if not (directory / 'val').is_dir():
    del names['validation']
  elif not (directory / 'test').is_dir():
    names = {'train': 'train', 'test': 'val'}
  _, files = image_files.list_images(directory, [*names.values()], _SUFFIXES)
  size = (resize, resize) if resize else None
  first, modes = '', set()
  for own in files.values():
    for index in range(len(own)):
      with readable(own.where(index)):
        header = image_files.opened(own[index].content, max_pixels)
      first, size = first or own.where(index), size or header.size
      if header.mode not in _GRAY | _COLOR:
        msg = (
          f'{own.where(index)} has pixels of mode {header.mode}; save it with '
          f'8 bits'
        )
        raise ValueError(msg)
      if not resize and header.size != size:
        msg = (
          f'{own.where(index)} has {header.width} x {header.height} pixels and '
          f'{first} has {size[0]} x {size[1]}; give all the same size, or '
          f'--resize N'
        )
        raise ValueError(msg)
      modes.add(header.mode)
  mode = 'L' if modes <= _GRAY else 'RGB'
  assert size is not None
  parts = []
  for part, name in names.items():
    own, where = files[name], str(directory / name)
    shape = (len(own), *size[::-1], 1 if mode == 'L' else 3)
    check_size(where, shape)
    images = np.empty(shape, np.uint8)
    for index in range(len(own)):
      with readable(own.where(index)):
        pixels = image_files.decoded(own[index].content, max_pixels, mode, size)
      images[index] = pixels.reshape(shape[1:])
    parts.append(Part(part, images, own.labels, (where, f'{where}: labels')))
  return parts
