"""ImageNet, or any images in its layout, as input of the trainer.

::

  images = imagenet.open_images(directory)  # a folder, or shards of it
  options = imagenet.InputOptions(batch_size=1024)
  training = imagenet.TrainingInput(images.train, options, seed=0, say=print)
  evaluation = imagenet.EvaluationInput(images.val, options, say=print)

Batches contain pixels as `uint8`; call `normalize` inside the compiled step.
`convert` turns a folder into shards, which are faster to read on several
machines or from a network disk. Needs `optax-sam[imagenet]`.
"""

from optax_sam.train.data.imagenet.conversion import convert
from optax_sam.train.data.imagenet.directory import open_images
from optax_sam.train.data.imagenet.loader import (
  EvaluationInput,
  InputOptions,
  TrainingInput,
)
from optax_sam.train.data.imagenet.normalization import normalize
from optax_sam.train.data.imagenet.sources import Images

__all__ = [
  'EvaluationInput',
  'Images',
  'InputOptions',
  'TrainingInput',
  'convert',
  'normalize',
  'open_images',
]
