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

from optax_sam.train.data.imagenet.conversion import convert
from optax_sam.train.data.imagenet.inputs import (
  ImageInputs,
  InputOptions,
  evaluation_input,
  training_input,
)
from optax_sam.train.data.imagenet.shards import open_images
from optax_sam.train.data.imagenet.transforms import normalize

__all__ = [
  'ImageInputs',
  'InputOptions',
  'convert',
  'evaluation_input',
  'normalize',
  'open_images',
  'training_input',
]
