"""Decodes, crops and resizes JPEG images to uint8 pixels.

Decoding is most of the work of the input. libjpeg can decode to a half, a
quarter or an eighth of the size for little more than the cost of reading the
bits; sizes between these take longer than the whole image. The smallest such
size is used at which the crop has no fewer pixels than the result. The box on
the small image has fractional coordinates, so it is the same part of the image.

Pillow decodes files for which simplejpeg raises an error or a warning: PNG
files named as JPEG, and files with extra bytes. ImageNet has a few. An image
that Pillow cannot decode either is corrupt.

Orientation tags are ignored, as in published results.
"""

import io
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from optax_sam.train.data.imagenet.sources import CorruptImage

_SMALLEST_AREA = 0.08
_RATIOS = (3 / 4, 4 / 3)
_TRIES = 10
_RESIZED = 256 / 224
_REDUCTIONS = (8, 4, 2)


class Box(NamedTuple):
  """A part of an image, in pixels."""

  top: float
  left: float
  height: float
  width: float


def training_image(
  jpeg: bytes, size: int, generator: np.random.Generator
) -> np.ndarray:
  """Decodes a random crop of an image, mirrored with probability 1/2.

  Args:
    jpeg: the file.
    size: height and width of the result.
    generator: random generator of crop and mirroring.

  Returns:
    uint8, (size, size, 3), red, green, blue.

  Raises:
    CorruptImage: if it cannot be decoded.
  """
  mirrored = generator.random() < 0.5
  box, pixels, reduction = _decode(
    jpeg, size, lambda rows, columns: random_crop(rows, columns, generator)
  )
  top, left, height, width = (length / reduction for length in box)
  first_row, first_column = math.floor(top), math.floor(left)
  # Only the crop is passed to Pillow, which copies its input. Pixels outside of
  # it do not affect the result.
  window = pixels[
    first_row : math.ceil(top + height), first_column : math.ceil(left + width)
  ]
  inside = Box(top - first_row, left - first_column, height, width)
  image = _resize(window, inside, size)
  if mirrored:
    image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
  return np.asarray(image)


def evaluation_image(jpeg: bytes, size: int) -> np.ndarray:
  """Decodes the centre crop of an image.

  The short side of the image is resized to 256/224 of `size`, and the central
  square is cropped. Both are done at once, so pixels outside of the crop are
  never computed.

  Args:
    jpeg: the file.
    size: height and width of the result.

  Returns:
    uint8, (size, size, 3), red, green, blue.

  Raises:
    CorruptImage: if it cannot be decoded.
  """
  box, pixels, reduction = _decode(
    jpeg, size, lambda rows, columns: centre_crop(rows, columns, size)
  )
  box = Box(*(length / reduction for length in box))
  return np.asarray(_resize(pixels, box, size))


def check(jpeg: bytes) -> None:
  """Raises a CorruptImage if an image cannot be decoded."""
  _decode(jpeg, 1, lambda *_: Box(0, 0, 1, 1))


def random_crop(height: int, width: int, generator: np.random.Generator) -> Box:
  """Draws the random crop of a training image.

  Its fraction of the area is uniform from 8% to 100%, and the logarithm of its
  aspect ratio is uniform between those of 3/4 and 4/3. If ten draws don't fit
  into the image, it is the largest centred crop with an aspect ratio in this
  range. From Szegedy et al., `Going deeper with convolutions
  <https://arxiv.org/abs/1409.4842>`_, 2014; the ten draws and the fallback are
  common practice.

  Args:
    height: height of the image in pixels.
    width: width of the image in pixels.
    generator: random generator.

  Returns:
    A box of whole pixels inside the image.
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
  """Returns the centre crop of an image for evaluation.

  Args:
    height: height of the image in pixels.
    width: width of the image in pixels.
    size: height and width of the result.

  Returns:
    The box, in fractional pixels, whose resize to `size` equals resizing the
    whole image and cropping its centre.
  """
  short, resized_short = min(height, width), round(_RESIZED * size)
  rows, columns = (
    int(resized_short * length / short) for length in (height, width)
  )
  top, left = round((rows - size) / 2), round((columns - size) / 2)
  down, across = height / rows, width / columns
  return Box(top * down, left * across, size * down, size * across)


def _decode(
  jpeg: bytes, size: int, place: Callable[[int, int], Box]
) -> tuple[Box, np.ndarray, int]:
  """Decodes an image at the smallest sufficient size.

  Args:
    jpeg: the file.
    size: size to which the box will be resized.
    place: maps height and width of the image to the box.

  Returns:
    The box, in pixels of the original image; the decoded pixels, RGB; and the
    factor by which the decoded image is smaller.
  """
  try:
    rows, columns, *_ = simplejpeg.decode_jpeg_header(jpeg)
  except ValueError:
    pixels = _decode_with_pillow(jpeg)
    return place(pixels.shape[0], pixels.shape[1]), pixels, 1
  height, width = int(rows), int(columns)
  box = place(height, width)
  reduction = _reduction(box, size)
  try:
    pixels = simplejpeg.decode_jpeg(
      jpeg,
      'RGB',
      min_height=-(-height // reduction),
      min_width=-(-width // reduction),
    )
  except ValueError:
    return box, _decode_with_pillow(jpeg), 1
  return box, pixels, reduction


def _reduction(box: Box, size: int) -> int:
  for reduction in _REDUCTIONS:
    if min(box.height, box.width) >= reduction * size:
      return reduction
  return 1


def _decode_with_pillow(jpeg: bytes) -> np.ndarray:
  try:
    with Image.open(io.BytesIO(jpeg)) as image:
      return np.asarray(image.convert('RGB'))
  except Exception as error:  # damage raises many types
    msg = f'the image cannot be decoded: {error}'
    raise CorruptImage(msg) from error


def _resize(pixels: np.ndarray, box: Box, size: int) -> Image.Image:
  return Image.fromarray(pixels).resize(
    (size, size),
    Image.Resampling.BILINEAR,
    box=(box.left, box.top, box.left + box.width, box.top + box.height),
  )
