"""Folders of small images, PNG or JPEG, in memory."""

import contextlib
import os
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from optax_sam.train.data import parts

_SUFFIXES = ('.png', '.jpg', '.jpeg')
# Of one image, before it is decoded.
_MOST_PIXELS = 2**24
_GRAY = ('1', 'L')
_COLOR = ('RGB', 'RGBA', 'P', 'CMYK', 'YCbCr', 'LA', 'PA')


def read(directory: pathlib.Path, resize: int | None) -> list[parts.Part]:
  """Reads train/CLASS/*.png and test/CLASS/*.png, or val/ for test/.

  With both test/ and val/, the latter is the validation part. Classes are the
  folders of train/ in alphabetical order. If all images are gray they have one
  channel, else three.

  Args:
    directory: the folder.
    resize: height and width to which images are resized; None if they all have
      one size.

  Raises:
    ValueError: if a folder is missing, or an image is not valid.
  """
  found = {'train': 'train', 'test': 'test', 'validation': 'val'}
  if not (directory / 'val').is_dir():
    del found['validation']
  elif not (directory / 'test').is_dir():
    found = {'train': 'train', 'test': 'val'}
  classes = [path.name for path in _entries(directory / 'train', True)]
  files = {
    part: _files(directory / name, classes) for part, name in found.items()
  }
  first = files['train'][0][0]
  size = (resize, resize) if resize else _size(first)
  every = [path for paths, _ in files.values() for path in paths]
  modes = {_mode(path, size, resize, first) for path in every}
  mode = 'L' if modes <= {*_GRAY} else 'RGB'
  return [
    parts.Part(
      _images(paths, size, mode, str(directory / found[part])),
      np.asarray(labels, np.int32),
      part,
      (str(directory / found[part]), 'its labels'),
    )
    for part, (paths, labels) in files.items()
  ]


def _files(
  directory: pathlib.Path, classes: list[str]
) -> tuple[list[pathlib.Path], list[int]]:
  """Returns the images of a part and their labels."""
  paths, labels = [], []
  for folder in _entries(directory, True):
    if folder.name not in classes:
      msg = (
        f'{folder} has no counterpart in {directory.with_name("train")}; give '
        f'both the same class folders'
      )
      raise ValueError(msg)
    for path in _entries(folder, False):
      paths.append(path)
      labels.append(classes.index(folder.name))
  return paths, labels


def _entries(directory: pathlib.Path, folders: bool) -> list[pathlib.Path]:
  """Returns the class folders, or the images of a class."""
  what = 'one folder for each class' if folders else 'PNG or JPEG files'
  try:
    with os.scandir(directory) as scanned:
      entries = [entry for entry in scanned if not entry.name.startswith('.')]
  except OSError as error:
    msg = f'{directory} cannot be listed: {error.strerror}; it should contain '
    raise ValueError(msg + what) from None
  for entry in entries:
    is_image = entry.name.lower().endswith(_SUFFIXES) and entry.is_file()
    if not (entry.is_dir() if folders else is_image):
      msg = f'{entry.path} does not belong here: {directory} contains {what}'
      raise ValueError(msg)
  if not entries:
    msg = f'{directory} is empty; it should contain {what}'
    raise ValueError(msg)
  return sorted(pathlib.Path(entry.path) for entry in entries)


@contextlib.contextmanager
def _open(path: pathlib.Path) -> Iterator[Any]:
  """Yields an image after reading its header; refuses those too large."""
  try:
    from PIL import Image
  except ModuleNotFoundError:
    msg = "a folder of images needs Pillow: pip install 'optax-sam[imagenet]'"
    raise ValueError(msg) from None
  try:
    file = path.open('rb')
  except OSError as error:
    msg = f'{path} cannot be read: {error.strerror}'
    raise ValueError(msg) from None
  with file:
    try:
      with warnings.catch_warnings():
        warnings.simplefilter('ignore', Image.DecompressionBombWarning)
        image = Image.open(file, formats=('PNG', 'JPEG'))
    except Image.DecompressionBombError:
      image = None
    except (OSError, ValueError, SyntaxError):
      msg = f'{path} cannot be read: it is not PNG or JPEG'
      raise ValueError(msg) from None
    if image is None or image.width * image.height > _MOST_PIXELS:
      count = f'{_MOST_PIXELS >> 20} million pixels'
      msg = f'{path} has more than {count}; resize it'
      raise ValueError(msg)
    yield image


def _size(path: pathlib.Path) -> tuple[int, int]:
  with _open(path) as image:
    return image.size


def _mode(
  path: pathlib.Path,
  size: tuple[int, int],
  resize: int | None,
  first: pathlib.Path,
) -> str:
  """Returns the color mode of an image, after a check of its header."""
  with _open(path) as image:
    if image.mode not in (*_GRAY, *_COLOR):
      msg = f'{path} has pixels of mode {image.mode}; save it with 8 bits'
      raise ValueError(msg)
    if resize is None and image.size != size:
      msg = (
        f'{path} has {image.width} x {image.height} pixels and {first} has '
        f'{size[0]} x {size[1]}; give all the same size, or --resize N'
      )
      raise ValueError(msg)
    return image.mode


def _images(
  paths: list[pathlib.Path], size: tuple[int, int], mode: str, where: str
) -> np.ndarray:
  """Returns the decoded images (images, height, width, channels)."""
  width, height = size
  shape = (len(paths), height, width, 1 if mode == 'L' else 3)
  parts.check_size(where, shape)
  images = np.empty(shape, np.uint8)
  for number, path in enumerate(paths):
    with _open(path) as opened:
      try:
        image = opened.convert(mode)
        if image.size != size:
          image = image.resize(size)
      except (OSError, ValueError, SyntaxError, MemoryError) as error:
        msg = f'{path} cannot be decoded: {error}'
        raise ValueError(msg) from None
    images[number] = np.asarray(image).reshape(shape[1:])
  return images
