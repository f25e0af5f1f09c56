import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from optax_sam.train.data import datasets
from tests.train.data.imagenet import pictures

CLASSES = ('ant', 'bee')


def png(pixels):
  """Returns the PNG of (height, width) or (height, width, 3) bytes."""
  return pictures.stored(pixels, 'PNG', 'RGB' if pixels.ndim == 3 else 'L')


def pixels(seed, shape=(4, 6)):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture
def folder(tmp_path):
  for part, count in (('train', 2), ('test', 1)):
    for name in CLASSES:
      directory = tmp_path / part / name
      directory.mkdir(parents=True)
      for number in range(count):
        content = png(pixels(10 * number + len(part + name)))
        (directory / f'{number}.png').write_bytes(content)
  return tmp_path


def test_gray_images_have_one_channel(folder):
  dataset = datasets.load(str(folder))
  assert dataset.train['inputs'].shape == (4, 4, 6, 1)
  assert dataset.train['labels'].tolist() == [0, 0, 1, 1]
  expected = pixels(10 + len('trainbee')) / np.float32(255)
  np.testing.assert_array_equal(dataset.train['inputs'][3, ..., 0], expected)
  assert dataset.test['labels'].tolist() == [0, 1]


def test_one_color_image_makes_three_channels(folder):
  color = pixels(5, (4, 6, 3))
  (folder / 'train' / 'ant' / '0.png').write_bytes(png(color))
  inputs = datasets.load(str(folder)).train['inputs']
  assert inputs.shape == (4, 4, 6, 3)
  np.testing.assert_array_equal(inputs[0], color / np.float32(255))
  np.testing.assert_array_equal(inputs[1, ..., 0], inputs[1, ..., 2])


def test_val_is_the_test_part_or_validates(folder):
  (folder / 'test').rename(folder / 'val')
  assert datasets.load(str(folder)).validation is None
  (folder / 'test' / 'bee').mkdir(parents=True)
  (folder / 'test' / 'bee' / 'a.PNG').write_bytes(png(pixels(0)))
  dataset = datasets.load(str(folder))
  assert dataset.test['labels'].tolist() == [1]
  assert dataset.validation['labels'].tolist() == [0, 1]


def test_jpegs_of_several_sizes_are_resized_by_the_flag(folder):
  Image.fromarray(pixels(1, (9, 9))).save(folder / 'train' / 'ant' / 'a.JPG')
  with pytest.raises(ValueError, match=r'9 x 9 pixels .* or --resize N'):
    datasets.load(str(folder))
  assert datasets.load(str(folder), resize=5).train['inputs'].shape == (
    5,
    5,
    5,
    1,
  )


def replace(path, content):
  path.unlink()
  path.write_bytes(content)


FIRST = pathlib.Path('train', 'ant', '0.png')


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (lambda x: replace(x / FIRST, b'not an image'), 'it is not PNG or JPEG'),
    (lambda x: replace(x / FIRST, b''), 'it is not PNG or JPEG'),
    (lambda x: replace(x / FIRST, b'GIF89a' + bytes(99)), 'not PNG or JPEG'),
    (lambda x: replace(x / FIRST, png(pixels(0))[:60]), 'cannot be decoded'),
    (
      lambda x: replace(x / FIRST, pictures.header(60000, 60000, 'PNG')),
      'than --max-pixels 67',
    ),
    (
      lambda x: replace(x / FIRST, pictures.header(9000, 9000, 'JPEG')),
      'than --max-pixels 67',
    ),
    (
      lambda x: (x / 'test' / 'cat').mkdir(),
      'cat is a folder of train or of test only',
    ),
    (
      lambda x: (x / 'train' / 'cat').mkdir(),
      'cat should contain .*: it is empty',
    ),
    (lambda x: (x / 'train' / 'notes.txt').touch(), 'does not belong here'),
    (
      lambda x: (x / 'train' / 'ant' / 'a.txt').touch(),
      'should contain .png or .jpg .*a.txt does not belong here',
    ),
    (lambda x: os.mkfifo(x / 'train' / 'ant' / 'a.png'), 'does not belong'),
    (lambda x: (x / 'test').rename(x / 'dev'), 'test cannot be read'),
    (lambda x: (x / 'train').rename(x / 'learn'), 'or train/CLASS'),
  ],
)
def test_a_folder_that_is_not_valid_is_refused(folder, damage, message):
  damage(folder)
  with pytest.raises(ValueError, match=message) as error:
    datasets.load(str(folder))
  assert '\n' not in str(error.value)


def test_the_number_of_pixels_can_be_limited(folder):
  datasets.load(str(folder), max_pixels=24)
  with pytest.raises(
    ValueError, match='6 x 4 pixels, more than --max-pixels 23'
  ):
    datasets.load(str(folder), max_pixels=23)


def test_more_than_the_memory_is_refused_before_decoding(folder):
  with pytest.raises(ValueError, match='is too large: at most 16 GiB'):
    datasets.load(str(folder), resize=40_000)
