"""Images in folders: `DIR/train/CLASS/*.JPEG` and `DIR/val/CLASS/*.JPEG`.

The classes are the sorted names of the class folders. Suffixes are `.jpeg` and
`.jpg` in upper or lower case. Hidden files are ignored. Any other entry is an
error when the folder is opened: otherwise a model would silently train on fewer
images than the user expects.

Only the suffix is checked here. A PNG file with the suffix of a JPEG, of which
ImageNet has one, is decoded like the others.
"""

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from optax_sam.train.data.imagenet.sources import Example, Images

SPLITS = ('train', 'val')
_SUFFIXES = ('.jpeg', '.jpg')


class FolderSource:
  """The images of one split, sorted by class and name."""

  def __init__(
    self,
    directory: pathlib.Path,
    classes: Sequence[str],
    files: Sequence[Sequence[str]],
  ) -> None:
    """Creates a source from a listing, without checks.

    Args:
      directory: directory of the split.
      classes: names of the class folders.
      files: names of the files of each class.
    """
    self._directory = directory
    self._classes = tuple(classes)
    self._files = [file for names in files for file in names]
    self._labels = np.repeat(np.arange(len(files)), [len(x) for x in files])

  def __len__(self) -> int:
    """Returns the number of images."""
    return len(self._files)

  def __getitem__(self, index: int) -> Example:
    """Reads one image; raises a ValueError if the file cannot be read."""
    path = self._directory / self.name(index)
    try:
      jpeg = path.read_bytes()
    except OSError as error:
      msg = f'{path} cannot be read: {error.strerror or error}'
      raise ValueError(msg) from error
    return Example(jpeg, int(self._labels[index]), self.name(index))

  def name(self, index: int) -> str:
    """Returns the class folder and the file name of an image."""
    return f'{self._classes[self._labels[index]]}/{self._files[index]}'

  def where(self, index: int) -> str:
    """Returns the path of an image."""
    return str(self._directory / self.name(index))


def open_folder(directory: pathlib.Path) -> Images:
  """Lists the images of a folder, without reading any.

  Args:
    directory: directory with `train` and `val`.

  Raises:
    ValueError: if a path is missing, empty or misplaced; names the first one.
  """
  classes, splits = list_folder(directory)
  return Images(splits['train'], splits['val'], classes)


def list_folder(
  directory: pathlib.Path,
) -> tuple[tuple[str, ...], dict[str, FolderSource]]:
  """Returns the classes of a folder and its splits; raises as `open_folder`."""
  classes = {split: _classes(directory / split) for split in SPLITS}
  _check_same(directory, classes)
  splits = {
    split: FolderSource(
      directory / split,
      classes[split],
      [_files(directory / split / name) for name in classes[split]],
    )
    for split in SPLITS
  }
  return tuple(classes['train']), splits


def _classes(directory: pathlib.Path) -> list[str]:
  entries = _entries(directory, 'one folder of images per class')
  for entry in entries:
    if not entry.is_dir():
      msg = (
        f'{entry.path} is not a class folder; put every image of '
        f'{directory} into the folder of its class and remove other files'
      )
      raise ValueError(msg)
  return sorted(entry.name for entry in entries)


def _files(directory: pathlib.Path) -> list[str]:
  entries = _entries(directory, 'the JPEG files of one class')
  for entry in entries:
    if not (entry.name.lower().endswith(_SUFFIXES) and entry.is_file()):
      msg = (
        f'{entry.path} is not a file named .jpeg or .jpg; '
        f'convert it to JPEG or remove it'
      )
      raise ValueError(msg)
  return sorted(entry.name for entry in entries)


def _entries(directory: pathlib.Path, content: str) -> list[os.DirEntry[str]]:
  """Lists a directory; raises a ValueError if it is empty."""
  try:
    with os.scandir(directory) as found:
      entries = [entry for entry in found if not entry.name.startswith('.')]
  except FileNotFoundError:
    msg = f'{directory} is missing; it should contain {content}'
    raise ValueError(msg) from None
  except OSError as error:
    msg = f'{directory} cannot be listed: {error.strerror or error}'
    raise ValueError(msg) from error
  if not entries:
    msg = f'{directory} is empty; it should contain {content}'
    raise ValueError(msg)
  return sorted(entries, key=lambda entry: entry.name)


def _check_same(directory: pathlib.Path, classes: dict[str, list[str]]) -> None:
  """Raises a ValueError unless both splits have the same classes."""
  for split, other in (SPLITS, SPLITS[::-1]):
    alone = sorted(set(classes[split]) - set(classes[other]))
    if alone:
      msg = (
        f'{directory / split / alone[0]} has no counterpart in '
        f'{directory / other} ({len(alone)} of {len(classes[split])} class '
        f'folders have none); give both the same class folders'
      )
      raise ValueError(msg)
