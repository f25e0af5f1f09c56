"""ImageNet, or any images in its layout, as input of the trainer.

`convert` turns a folder into shards, which are faster to read on several
machines or from a network disk. Needs `optax-sam[imagenet]`.
"""

from optax_sam.train.data.imagenet.conversion import convert
from optax_sam.train.data.imagenet.image_inputs import ImageInputs
from optax_sam.train.data.imagenet.shards import open_images
from optax_sam.train.data.imagenet.transforms import normalize

__all__ = ['ImageInputs', 'convert', 'normalize', 'open_images']
