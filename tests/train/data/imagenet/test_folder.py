"""Image folders: listing and errors."""

import pathlib
import shutil

import numpy as np
import pytest

from optax_sam.train.data import imagenet
from tests.train.data.imagenet import pictures


def test_every_image_has_the_label_of_its_class(folder):
  images = imagenet.open_images(folder)
  assert images.classes == pictures.CLASSES
  for source, count in (
    (images.train, pictures.TRAIN_PER_CLASS),
    (images.val, pictures.VAL_PER_CLASS),
  ):
    assert len(source) == len(pictures.CLASSES) * count
    labels = [source[index].label for index in range(len(source))]
    assert labels == np.repeat(np.arange(6), count).tolist()
    names = source.names
    assert names == sorted(names)
    assert all(name.startswith(images.classes[0]) for name in names[:count])


def test_an_image_has_the_bytes_of_its_file(folder):
  train = imagenet.open_images(folder).train
  path = folder / 'train' / 'n03' / 'n03_02.JPG'
  index = 2 * pictures.TRAIN_PER_CLASS + 2
  assert train[index].content == path.read_bytes()
  assert train.where(index) == str(path)


def test_hidden_files_are_ignored(own_folder):
  before = len(imagenet.open_images(own_folder).train)
  (own_folder / 'train' / '.DS_Store').touch()
  (own_folder / 'train' / 'n01' / '.DS_Store').touch()
  assert len(imagenet.open_images(own_folder).train) == before


def _empty(path):
  shutil.rmtree(path)
  path.mkdir()


def _copy(path):
  shutil.copytree(path.with_name('n01'), path)


@pytest.mark.parametrize(
  ('damage', 'path', 'message'),
  [
    (shutil.rmtree, '', 'is not a directory; give that of the images'),
    (_empty, '', 'has neither manifest.json nor the folders train and val'),
    (shutil.rmtree, 'val', 'cannot be read: No such file .* one folder for'),
    (_empty, 'train/n02', 'should contain .jpeg or .jpg: it is empty'),
    (_copy, 'train/n00', 'n00 is a folder of train or of val only; give both'),
    (_copy, 'val/n07', 'n07 is a folder of train or of val only; give both'),
    (
      pathlib.Path.touch,
      'val/1.JPEG',
      'val should contain one folder for each class',
    ),
    (
      pathlib.Path.touch,
      'train/n01/a.txt',
      'contain .jpeg or .jpg: .*a.txt does not belong',
    ),
    (
      pathlib.Path.mkdir,
      'train/n01/a.jpeg',
      'contain .jpeg or .jpg: .*a.jpeg does not belong',
    ),
  ],
)
def test_an_invalid_folder_is_reported_in_one_line(
  own_folder, damage, path, message
):
  damage(own_folder / path)
  with pytest.raises(ValueError, match=message) as error:
    imagenet.open_images(own_folder)
  assert str(own_folder) in str(error.value)
  assert '\n' not in str(error.value)


def test_a_deleted_file_is_reported_in_one_line(own_folder):
  train = imagenet.open_images(own_folder).train
  path = min(own_folder.glob('train/*/*'))
  path.unlink()
  with pytest.raises(ValueError, match='cannot be read: No such file') as error:
    train[0]
  assert str(error.value).startswith(str(path))
