"""Decodes, crops and resizes JPEG images to uint8 pixels.

libjpeg can decode to a half, a quarter or an eighth of the size for little more
than the cost of reading the bits. The smallest such size is used at which the
crop has no fewer pixels than the result. The box on the small image has
fractional coordinates, so it is the same part of the image.

Pillow decodes files for which simplejpeg raises an error or a warning, such as
PNG files named as JPEG. An image that Pillow cannot decode either is corrupt.
Orientation tags are ignored, as in published results.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import simplejpeg
from jax.typing import DTypeLike
from PIL import Image

from optax_sam.train.data import image_files
from optax_sam.train.data.image_files import CorruptImage

_SMALLEST_AREA = 0.08
_RATIOS = (3 / 4, 4 / 3)
_TRIES = 10
_RESIZED = 256 / 224
# Of red, green, blue in ImageNet; white is 1.
_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)


class Box(NamedTuple):
  """A part of an image, in pixels."""

  top: float
  left: float
  height: float
  width: float


def image(
  content: bytes,
  size: int,
  max_pixels: int = image_files.MOST_PIXELS,
  generator: np.random.Generator | None = None,
) -> np.ndarray:
  """Decodes a crop of a file, as uint8 (size, size, 3), RGB.

  With a generator it is a random crop for training, mirrored with probability
  1/2; without one it is the centre crop for evaluation. Raises a CorruptImage
  if the image cannot be decoded, or has more than `max_pixels`.
  """
  mirrored = generator is not None and generator.random() < 0.5
  place: Any = functools.partial(centre_crop, size=size)
  if generator is not None:
    place = functools.partial(random_crop, generator=generator)
  (top, left, height, width), pixels = _decode(content, size, max_pixels, place)
  if generator is not None:
    # Pixels outside of a random crop must not affect it, unlike the centre crop
    # of an image that is resized first.
    row, column = math.floor(top), math.floor(left)
    bottom, right = math.ceil(top + height), math.ceil(left + width)
    pixels = pixels[row:bottom, column:right]
    top, left = top - row, left - column
  resized = Image.fromarray(pixels).resize(
    (size, size),
    Image.Resampling.BILINEAR,
    box=(left, top, left + width, top + height),
  )
  return np.asarray(resized)[:, :: -1 if mirrored else 1]


def check(content: bytes, max_pixels: int = image_files.MOST_PIXELS) -> None:
  """Raises a CorruptImage if an image cannot be decoded."""
  _decode(content, 1, max_pixels, lambda *_: Box(0, 0, 1, 1))


def check_any(source: Any, directory: Any, max_pixels: int) -> None:
  """Raises a ValueError if no image of a source can be decoded."""
  reason = 'there are none'
  for index in range(len(source)):
    try:
      return check(source[index].content, max_pixels)
    except CorruptImage as error:
      reason = f'{source.where(index)}: {error}'
  msg = f'none of the {len(source)} images of {directory} is usable: {reason}'
  raise ValueError(msg)


def random_crop(height: int, width: int, generator: np.random.Generator) -> Box:
  """Draws the random crop of a training image, in whole pixels.

  Its fraction of the area is uniform from 8% to 100%, and the logarithm of its
  aspect ratio between those of 3/4 and 4/3 (Szegedy et al., 2014,
  https://arxiv.org/abs/1409.4842). If ten draws don't fit into the image, it is
  the largest centred crop with an aspect ratio in this range.
  """
  logarithms = np.log(_RATIOS)
  for _ in range(_TRIES):
    area = height * width * generator.uniform(_SMALLEST_AREA, 1)
    ratio = math.exp(generator.uniform(*logarithms))
    crop_height = round(math.sqrt(area / ratio))
    crop_width = round(math.sqrt(area * ratio))
    if 0 < crop_height <= height and 0 < crop_width <= width:
      top = int(generator.integers(height - crop_height + 1))
      left = int(generator.integers(width - crop_width + 1))
      return Box(top, left, crop_height, crop_width)
  narrowest, widest = _RATIOS
  crop_height = min(height, max(1, round(width / narrowest)))
  crop_width = min(width, max(1, round(height * widest)))
  top, left = (height - crop_height) // 2, (width - crop_width) // 2
  return Box(top, left, crop_height, crop_width)


def centre_crop(height: int, width: int, size: int) -> Box:
  """Returns the box, in fractional pixels, of the centre crop of an image.

  Resizing it to `size` equals resizing the short side of the whole image to
  256/224 of `size` and cropping its centre.
  """
  short, resized = min(height, width), round(_RESIZED * size)
  rows, columns = (int(resized * x / short) for x in (height, width))
  top, left = round((rows - size) / 2), round((columns - size) / 2)
  down, across = height / rows, width / columns
  return Box(top * down, left * across, size * down, size * across)


def _decode(
  content: bytes, size: int, max_pixels: int, place: Callable[[int, int], Box]
) -> tuple[Box, np.ndarray]:
  """Decodes an image at the smallest size at which a box has enough pixels.

  `place` maps height and width to the box. Returns it on the decoded pixels.
  """
  try:
    rows, columns, *_ = simplejpeg.decode_jpeg_header(content)
    height, width = int(rows), int(columns)
    image_files.check_pixels(width, height, max_pixels)
    box = place(height, width)
    smallest = min(box.height, box.width)
    reduction = next((x for x in (8, 4, 2) if smallest >= x * size), 1)
    pixels = simplejpeg.decode_jpeg(
      content,
      'RGB',
      min_height=-(-height // reduction),
      min_width=-(-width // reduction),
    )
  except ValueError:
    pixels = image_files.decoded(image_files.opened(content, max_pixels))
    return place(*pixels.shape[:2]), pixels
  return Box(*(length / reduction for length in box)), pixels


def normalize(inputs: jax.Array, dtype: DTypeLike = jnp.float32) -> jax.Array:
  """Normalizes red, green, blue of ImageNet to mean 0 and deviation 1.

  It belongs in the compiled step: batches of `uint8` are a quarter of the bytes
  to store and transfer.

  >>> import jax.numpy as jnp
  >>> white = jnp.full((1, 1, 3), 255, jnp.uint8)
  >>> [f'{value:.2f}' for value in normalize(white).ravel()]
  ['2.25', '2.43', '2.64']
  """
  shape = (1,) * (inputs.ndim - 1) + (3,)
  mean, deviation = (
    np.asarray(x, np.float32).reshape(shape) for x in (_MEAN, _DEVIATION)
  )
  scaled = inputs.astype(jnp.float32) * (1 / (255 * deviation))
  return (scaled - mean / deviation).astype(dtype)
