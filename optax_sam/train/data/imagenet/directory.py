"""Opens a directory of images, either a folder or shards."""

import pathlib

from optax_sam.train.data.imagenet.folder import SPLITS, open_folder
from optax_sam.train.data.imagenet.manifest import MANIFEST, UNFINISHED
from optax_sam.train.data.imagenet.sources import Images


def open_images(directory: pathlib.Path) -> Images:
  """Opens a directory of shards or an image folder.

  Args:
    directory: a directory with `manifest.json`, or with `train` and `val`.

  Raises:
    ValueError: if it has neither; in one line, with path and remedy.
  """
  if not directory.is_dir():
    msg = f'{directory} is not a directory; give that of the images'
    raise ValueError(msg)
  if any((directory / name).exists() for name in (MANIFEST, UNFINISHED)):
    from optax_sam.train.data.imagenet.shards import open_shards

    return open_shards(directory)
  if not any((directory / split).exists() for split in SPLITS):
    msg = (
      f'{directory} has neither {MANIFEST} nor the folders train and val; '
      f'give the directory of an image folder or of its shards'
    )
    raise ValueError(msg)
  return open_folder(directory)
