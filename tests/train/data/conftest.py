"""A generated set of images, as folder and as shards."""

import shutil

import pytest

from optax_sam.train.data import imagenet
from tests.train.data.imagenet import pictures


@pytest.fixture(scope='session')
def folder(tmp_path_factory):
  """An image folder that tests must not change."""
  return pictures.make_folder(tmp_path_factory.mktemp('images') / 'folder')


@pytest.fixture
def own_folder(folder, tmp_path):
  """An image folder that a test may damage."""
  return shutil.copytree(folder, tmp_path / 'folder')


@pytest.fixture(scope='session')
def shards(folder, tmp_path_factory):
  """The folder as shards that tests must not change."""
  target = tmp_path_factory.mktemp('shards') / 'shards'
  imagenet.convert(folder, target, shards=5, threads=2, say=lambda _: None)
  return target


@pytest.fixture
def own_shards(shards, tmp_path):
  """Shards that a test may damage."""
  return shutil.copytree(shards, tmp_path / 'shards')


@pytest.fixture
def said():
  """A list that collects all messages."""
  return []
