"""Crops, mirroring and decoding."""

import io
import resource

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from optax_sam.train.data.image_files import CorruptImage
from optax_sam.train.data.imagenet import transforms
from tests.train.data.imagenet import pictures


def _smooth(height, width, seed=0):
  """A smooth image without repetition, like a photo."""
  noise = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), np.uint8)
  image = Image.fromarray(noise)
  return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def _opened(jpeg):
  with Image.open(io.BytesIO(jpeg)) as image:
    return image.convert('RGB')


def _apart(a, b):
  return np.abs(np.asarray(a, np.int32) - np.asarray(b, np.int32))


def test_crops_have_the_published_areas_and_ratios():
  generator = np.random.default_rng(0)
  height, width = 375, 500
  boxes = np.array(
    [transforms.random_crop(height, width, generator) for _ in range(4000)]
  )
  top, left, crop_height, crop_width = boxes.T
  assert (top >= 0).all()
  assert (left >= 0).all()
  assert (top + crop_height <= height).all()
  assert (left + crop_width <= width).all()
  fraction = crop_height * crop_width / (height * width)
  # Slack because sides are whole pixels.
  assert fraction.min() > 0.078
  assert fraction.min() < 0.09
  assert 0.95 < fraction.max() <= 1
  ratio = crop_width / crop_height
  assert ratio.min() > 0.74
  assert ratio.max() < 1.35
  # Crops below 40% of the area always fit, so none is rejected: logarithm of
  # the ratio, area and position are uniform.
  small = fraction < 0.4
  logarithms = np.log(ratio)[small]
  assert abs(logarithms.mean()) < 0.015
  assert abs(logarithms.std() - np.log(16 / 9) / np.sqrt(12)) < 0.01
  assert abs((fraction[small] < 0.24).mean() - 0.5) < 0.04
  for offset, room in ((top, height - crop_height), (left, width - crop_width)):
    assert abs((offset[small] / room[small]).mean() - 0.5) < 0.02
    assert (offset == 0)[small].any()
    assert (offset == room)[small].any()


@pytest.mark.parametrize(
  ('shape', 'box'),
  [
    ((1000, 30), (480, 0, 40, 30)),
    ((30, 1000), (0, 480, 30, 40)),
    ((1, 1000), (0, 499, 1, 1)),
  ],
)
def test_a_strip_uses_the_fallback_crop(shape, box):
  generator = np.random.default_rng(0)
  assert {transforms.random_crop(*shape, generator) for _ in range(9)} == {box}


def test_half_of_the_images_are_mirrored():
  image = np.zeros((40, 40, 3), np.uint8)
  image[:, :20] = 200
  # Any mirrored crop is brighter on the left.
  jpeg = pictures.stored(image)
  generator = np.random.default_rng(0)
  tilts = []
  for _ in range(600):
    result = transforms.image(jpeg, 8, generator=generator).astype(np.int32)
    tilts.append(result[:, 0].mean() - result[:, -1].mean())
  tilts = np.array(tilts)
  tilts = tilts[abs(tilts) > 100]
  assert len(tilts) > 300
  assert 0.42 < (tilts < 0).mean() < 0.58


@pytest.mark.parametrize(
  ('shape', 'box'),
  [
    ((60, 80), (7, 11, 30, 40)),  # decoded whole
    ((375, 501), (33, 41, 300, 277)),  # at a quarter
    ((1001, 643), (3, 5, 901, 600)),  # at an eighth
    ((1001, 643), (0, 0, 1001, 643)),
  ],
)
def test_a_crop_is_the_same_part_at_any_decoded_size(monkeypatch, shape, box):
  monkeypatch.setattr(
    transforms, 'random_crop', lambda *_, **__: transforms.Box(*box)
  )
  jpeg = pictures.stored(_smooth(*shape))
  top, left, height, width = box
  crop = _opened(jpeg).crop((left, top, left + width, top + height))
  expected = crop.resize((32, 32), Image.Resampling.BILINEAR)
  for seed in range(8):
    result = transforms.image(jpeg, 32, generator=np.random.default_rng(seed))
    mirrored = np.random.default_rng(seed).random() < 0.5
    result = result[:, ::-1] if mirrored else result
    # An error of one pixel of the result would be about 10.
    assert _apart(result, expected).mean() < 1
    if shape == (60, 80):
      assert _apart(result, expected).max() == 0


@pytest.mark.parametrize(
  'shape', [(60, 80), (81, 60), (37, 37), (20, 31), (601, 803)]
)
def test_evaluation_resizes_then_crops(shape):
  jpeg = pictures.stored(_smooth(*shape))
  height, width = shape
  short = min(shape)
  rows, columns = 32 * height // short, 32 * width // short
  resized = _opened(jpeg).resize((columns, rows), Image.Resampling.BILINEAR)
  top, left = round((rows - 28) / 2), round((columns - 28) / 2)
  expected = resized.crop((left, top, left + 28, top + 28))
  result = transforms.image(jpeg, 28)
  # Equal up to the rounding of the box to float32; a large image is decoded at
  # a smaller size.
  apart = _apart(result, expected)
  assert apart.max() <= 1 or (height > 600 and apart.mean() < 1)


@pytest.mark.parametrize(
  ('kind', 'mode', 'tolerance'),
  [('JPEG', 'L', 0), ('JPEG', 'CMYK', 1), ('PNG', 'RGB', 0), ('PNG', 'P', 0)],
)
def test_other_formats_are_converted_to_rgb(kind, mode, tolerance):
  stored = pictures.stored(_smooth(32, 32), kind, mode)
  resized = _opened(stored).resize((32, 32), Image.Resampling.BILINEAR)
  result = transforms.image(stored, 28)
  assert result.shape == (28, 28, 3)
  cut = resized.crop((2, 2, 30, 30))
  assert _apart(result, cut).max() <= tolerance
  transforms.image(stored, 28, generator=np.random.default_rng(0))
  transforms.check(stored)


def test_extra_bytes_are_not_damage():
  jpeg = pictures.stored(_smooth(40, 50))
  # Before the end marker, where libjpeg warns about them.
  odd = jpeg[:-2] + b'\x00' * 7 + jpeg[-2:]
  with pytest.raises(ValueError, match='extraneous bytes'):
    simplejpeg.decode_jpeg(odd)
  np.testing.assert_array_equal(
    transforms.image(odd, 32), transforms.image(jpeg, 32)
  )


@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
def test_large_images_are_refused_before_anything_is_allocated(kind):
  large = pictures.header(60000, 60000, kind)
  small = pictures.header(9, 9, kind)
  generator = np.random.default_rng(0)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  for decode in (
    transforms.check,
    lambda x, *most: transforms.image(x, 8, *most),
    lambda x, *most: transforms.image(x, 8, *most, generator=generator),
  ):
    with pytest.raises(CorruptImage, match='60000 x 60000 pixels, more than'):
      decode(large)
    with pytest.raises(CorruptImage, match='more than --max-pixels 80;'):
      decode(small, 80)
  # In kilobytes; 3.6 billion pixels are at least 3.6 GB.
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 100_000


@pytest.mark.parametrize(
  'damage',
  [
    lambda _: b'no image',
    lambda jpeg: jpeg[:100],
    lambda jpeg: jpeg[: len(jpeg) // 2],
  ],
)
def test_a_damaged_image_raises(damage):
  jpeg = damage(pictures.stored(_smooth(40, 50)))
  for decode in (
    transforms.check,
    lambda stored: transforms.image(stored, 16),
    lambda stored: transforms.image(
      stored, 16, generator=np.random.default_rng(0)
    ),
  ):
    with pytest.raises(
      CorruptImage, match=r'cannot be decoded|is not PNG or JPEG'
    ):
      decode(jpeg)


def test_pixels_are_normalized_by_channel():
  inputs = np.random.default_rng(0).integers(0, 256, (2, 3, 3, 3), np.uint8)
  expected = inputs / 255 - [0.485, 0.456, 0.406]
  expected /= [0.229, 0.224, 0.225]
  result = transforms.normalize(inputs)
  assert result.dtype == np.float32
  np.testing.assert_allclose(result, expected, atol=1e-5)
  assert transforms.normalize(inputs, 'bfloat16').dtype == 'bfloat16'
