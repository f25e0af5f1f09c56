"""ImageNet, or any images in its layout, as input of the trainer.

::

  images = imagenet.open_images(directory)  # a folder, or shards of it
  options = imagenet.InputOptions(batch_size=1024)
  training = imagenet.training_input(images.train, options, seed=0, say=print)
  evaluation = imagenet.evaluation_input(images.val, options, say=print)

Batches contain pixels as `uint8`; call `normalize` inside the compiled step.
`convert` turns a folder into shards, which are faster to read on several
machines or from a network disk. Needs `optax-sam[imagenet]`.
"""

import dataclasses
import pathlib

from optax_sam.train.data import image_files
from optax_sam.train.data.imagenet import shards
from optax_sam.train.data.imagenet.conversion import JPEG, SPLITS, convert
from optax_sam.train.data.imagenet.loader import (
  Input,
  InputOptions,
  evaluation_input,
  training_input,
)
from optax_sam.train.data.imagenet.transforms import normalize

__all__ = [
  'Images',
  'Input',
  'InputOptions',
  'convert',
  'evaluation_input',
  'normalize',
  'open_images',
  'training_input',
]


@dataclasses.dataclass(frozen=True)
class Images:
  """Training and validation images; a label is an index into the classes."""

  train: shards.Source
  val: shards.Source
  classes: tuple[str, ...]


def open_images(directory: pathlib.Path) -> Images:
  """Opens a directory with `manifest.json`, or with folders `train` and `val`.

  Images are not read yet. Raises a ValueError, with path and remedy, if
  something is missing or differs from what is expected.
  """
  if (directory / shards.MANIFEST).exists():
    found = shards.read_manifest(directory / shards.MANIFEST)
    train, val = (
      shards.ShardSource(directory, split, entries, len(found.classes))
      for split, entries in (('train', found.train), ('val', found.val))
    )
    return Images(train, val, found.classes)
  problem = ''
  if not directory.is_dir():
    problem = 'is not a directory; give that of the images'
  elif any(directory.glob(f'*{shards.SUFFIX}*')):
    problem = 'is a conversion that was interrupted; run it again to resume it'
  elif not any((directory / split).exists() for split in SPLITS):
    problem = (
      f'has neither {shards.MANIFEST} nor the folders train and val; give the '
      f'directory of an image folder or of its shards'
    )
  if problem:
    msg = f'{directory} {problem}'
    raise ValueError(msg)
  classes, files = image_files.list_images(
    directory, SPLITS, JPEG, same_classes=True
  )
  return Images(files['train'], files['val'], classes)
