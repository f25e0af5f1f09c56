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
  """Training and validation images, sorted by class and name.

  Attributes:
    train: the training images.
    val: the validation images.
    classes: names of the classes; a label is an index into these.
  """

  train: shards.Source
  val: shards.Source
  classes: tuple[str, ...]


def open_images(directory: pathlib.Path) -> Images:
  """Opens a directory of shards or an image folder, without reading images.

  Args:
    directory: a directory with `manifest.json`, or with `train` and `val`.

  Raises:
    ValueError: if it has neither, or if something in it is missing or differs
      from what is expected; in one line, with path and remedy.
  """
  if not directory.is_dir():
    msg = f'{directory} is not a directory; give that of the images'
    raise ValueError(msg)
  if (directory / shards.MANIFEST).exists():
    manifest = shards.read_manifest(directory / shards.MANIFEST)
    classes = manifest.classes
    train, val = (
      shards.ShardSource(
        directory, split, getattr(manifest, split), len(classes)
      )
      for split in SPLITS
    )
    return Images(train, val, classes)
  if any(directory.glob(f'*{shards.SUFFIX}*')):
    msg = (
      f'{directory} is a conversion that was interrupted; '
      f'run it again to resume it'
    )
    raise ValueError(msg)
  if not any((directory / split).exists() for split in SPLITS):
    msg = (
      f'{directory} has neither {shards.MANIFEST} nor the folders train and '
      f'val; give the directory of an image folder or of its shards'
    )
    raise ValueError(msg)
  classes, files = image_files.list_images(
    directory, SPLITS, JPEG, same_classes=True
  )
  return Images(files['train'], files['val'], classes)
