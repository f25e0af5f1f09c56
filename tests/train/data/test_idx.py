import gzip
import pathlib
import struct

import numpy as np
import pytest

from optax_sam.train.data import datasets

NAMES = (
  'train-images-idx3-ubyte',
  'train-labels-idx1-ubyte',
  't10k-images-idx3-ubyte',
  't10k-labels-idx1-ubyte',
)


def idx(magic, shape, content):
  return struct.pack(f'>{1 + len(shape)}I', magic, *shape) + bytes(content)


IMAGES = range(0, 240, 10)  # 4 of 2 x 3
FILES = dict(
  zip(
    NAMES,
    (
      idx(0x803, (4, 2, 3), IMAGES),
      idx(0x801, (4,), [0, 1, 2, 1]),
      idx(0x803, (1, 2, 3), range(6)),
      idx(0x801, (1,), [2]),
    ),
    strict=True,
  )
)


@pytest.fixture
def write(tmp_path):
  def write(endings=('',) * 4, **changes):
    for (name, content), ending in zip(
      (FILES | changes).items(), endings, strict=True
    ):
      if content is not None:
        compressed = gzip.compress(content) if ending == '.gz' else content
        (tmp_path / f'{name}{ending}').write_bytes(compressed)
    return tmp_path

  return write


@pytest.mark.parametrize('endings', [('',) * 4, ('.gz', '', '.gz', '.gz')])
def test_images_are_scaled_and_get_a_channel(write, endings):
  dataset = datasets.load(str(write(endings)))
  images = dataset.train['inputs']
  assert images.dtype == np.float32
  expected = np.asarray(IMAGES, np.float32).reshape(4, 2, 3, 1) / 255
  np.testing.assert_array_equal(images, expected)
  assert dataset.train['labels'].tolist() == [0, 1, 2, 1]
  assert dataset.train['labels'].dtype == np.int32
  assert dataset.test['inputs'].shape == (1, 2, 3, 1)
  assert dataset.classes == 3


def test_emnist_names_and_other_dtypes_are_read(tmp_path):
  names = [f'emnist-mnist-{x.replace("t10k", "test")}' for x in NAMES]
  floats = struct.pack('>8f', *range(8))
  for name, content in zip(names, FILES.values(), strict=True):
    if 'images' in name:
      count = 4 if 'train' in name else 1
      content = idx(0xD02, (count, 2), floats[: 8 * count])
    (tmp_path / name).write_bytes(content)
  inputs = datasets.load(str(tmp_path)).train['inputs']
  np.testing.assert_array_equal(inputs, np.arange(8.0).reshape(4, 2))


@pytest.mark.parametrize(
  ('name', 'content', 'message'),
  [
    (NAMES[0], None, 'has no data; give one of'),
    (NAMES[1], None, 'has no files of train labels, such as train-images-idx3'),
    (NAMES[0], b'\x89PNG....', 'not an IDX file: it begins with 0x89504e47'),
    (NAMES[0], b'', 'not an IDX file'),
    (NAMES[0], idx(0x803, (4, 2), []), 'is truncated'),
    (NAMES[0], idx(0x803, (4, 2, 3), range(23)), 'truncated .*24 bytes'),
    (NAMES[0], idx(0x803, (4, 2, 3), range(25)), 'or too long: .* 24 bytes'),
    (NAMES[0], idx(0x803, (2**31,) * 3, []), 'is too large: at most 16 GiB'),
    (NAMES[0], idx(0x803, (0, 2, 3), []), 'at least one example'),
    (NAMES[0], b'\x1f\x8b\x08 not gzip', 'cannot be read'),
    (NAMES[1], idx(0x801, (3,), [0, 1, 2]), 'has 4 examples and .* has 3'),
    (
      NAMES[1],
      idx(0x801, (4,), [1, 2, 1, 2]),
      'number at least two classes 0, 1',
    ),
    (
      NAMES[2],
      idx(0x803, (1, 3, 2), range(6)),
      r'\(3, 2, 1\), .* all parts the same',
    ),
  ],
)
def test_a_file_that_is_not_valid_is_refused(write, name, content, message):
  with pytest.raises(ValueError, match=message) as error:
    datasets.load(str(write(**{name: content})))
  assert '\n' not in str(error.value)


def test_fashion_mnist_is_searched(write, tmp_path):
  directory = write()
  found = datasets.load('fashion_mnist', data_dir=directory)
  assert found.classes == 3
  (tmp_path / 'data').mkdir()
  for path in tmp_path.glob('*ubyte'):
    (tmp_path / 'data' / 'fashion-mnist').mkdir(exist_ok=True)
    path.rename(tmp_path / 'data' / 'fashion-mnist' / path.name)
  found = datasets.load('fashion_mnist', data_dir=tmp_path / 'data')
  assert found.classes == 3
  with pytest.raises(ValueError, match='apt install dataset-fashion-mnist'):
    datasets.load('fashion_mnist', data_dir=tmp_path / 'none')


DEBIAN = pathlib.Path('/usr/share/datasets/fashion-mnist')


@pytest.mark.skipif(not DEBIAN.is_dir(), reason='needs dataset-fashion-mnist')
def test_fashion_mnist_of_debian_has_ten_classes_of_6000():
  dataset = datasets.load('fashion_mnist', data_dir=DEBIAN)
  assert dataset.train['inputs'].shape == (60000, 28, 28, 1)
  assert np.bincount(dataset.train['labels']).tolist() == [6000] * 10
  assert np.bincount(dataset.test['labels']).tolist() == [1000] * 10
  # The mean pixel that users of the dataset normalize by.
  assert dataset.train['inputs'].mean() == pytest.approx(0.2860, abs=1e-4)
