"""Image folders: what is in them, and what is wrong with them."""

import shutil

import numpy as np
import pytest

from optax_sam.train.data import imagenet
from tests.imagenet import pictures


def _file(directory, pattern='*/*'):
  return min((directory / 'train').glob(pattern))


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
    names = [source[index].name for index in range(len(source))]
    assert names == sorted(names)
    assert all(name.startswith(images.classes[0]) for name in names[:count])


def test_an_image_is_its_file(folder):
  train = imagenet.open_images(folder).train
  path = folder / 'train' / 'n03' / 'n03_02.JPG'
  index = 2 * pictures.TRAIN_PER_CLASS + 2
  assert train[index].jpeg == path.read_bytes()
  assert train.where(index) == str(path)


def test_hidden_files_are_nobodys(own_folder):
  before = len(imagenet.open_images(own_folder).train)
  (own_folder / 'train' / '.DS_Store').touch()
  (own_folder / 'train' / 'n01' / '.DS_Store').touch()
  assert len(imagenet.open_images(own_folder).train) == before


def _without_directory(folder):
  shutil.rmtree(folder)
  return folder, 'is not a directory; give that of the images'


def _without_splits(folder):
  for split in ('train', 'val'):
    shutil.rmtree(folder / split)
  return folder, 'has neither manifest.json nor the folders train and val'


def _without_val(folder):
  shutil.rmtree(folder / 'val')
  return folder / 'val', 'is missing; it should hold one folder of images per'


def _empty_split(folder):
  shutil.rmtree(folder / 'val')
  (folder / 'val').mkdir()
  return folder / 'val', 'is empty; it should hold one folder of images per'


def _class_without_images(folder):
  shutil.rmtree(folder / 'train' / 'n02')
  (folder / 'train' / 'n02').mkdir()
  return folder / 'train' / 'n02', 'is empty; it should hold the JPEG files'


def _class_of_train_alone(folder):
  shutil.copytree(folder / 'train' / 'n01', folder / 'train' / 'n00')
  return folder / 'train' / 'n00', r'has no counterpart in .*val \(1 of 7'


def _class_of_val_alone(folder):
  shutil.copytree(folder / 'val' / 'n01', folder / 'val' / 'n07')
  return folder / 'val' / 'n07', r'has no counterpart in .*train \(1 of 7'


def _image_beside_the_classes(folder):
  path = folder / 'val' / 'ILSVRC2012_val_00000001.JPEG'
  path.touch()
  return path, 'is not a class folder; put every image of .* into the folder'


def _other_file_in_a_class(folder):
  path = folder / 'train' / 'n01' / 'notes.txt'
  path.touch()
  return path, 'is not a file named .jpeg or .jpg; convert it to JPEG or remove'


def _folder_in_a_class(folder):
  path = folder / 'train' / 'n01' / 'images.jpeg'
  path.mkdir()
  return path, 'is not a file named .jpeg or .jpg; convert it to JPEG or remove'


@pytest.mark.parametrize(
  'damage',
  [
    _without_directory,
    _without_splits,
    _without_val,
    _empty_split,
    _class_without_images,
    _class_of_train_alone,
    _class_of_val_alone,
    _image_beside_the_classes,
    _other_file_in_a_class,
    _folder_in_a_class,
  ],
)
def test_a_wrong_folder_is_one_line(own_folder, damage):
  path, complaint = damage(own_folder)
  with pytest.raises(ValueError, match=complaint) as error:
    imagenet.open_images(own_folder)
  assert str(error.value).startswith(f'{path} ')
  assert '\n' not in str(error.value)


def test_a_file_that_goes_away_is_one_line(own_folder):
  train = imagenet.open_images(own_folder).train
  path = _file(own_folder)
  path.unlink()
  with pytest.raises(ValueError, match='cannot be read: No such file') as error:
    train[0]
  assert str(error.value).startswith(str(path))
