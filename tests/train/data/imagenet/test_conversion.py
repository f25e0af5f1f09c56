"""Conversions: complete, interrupted, rejected."""

import os
import pathlib

import numpy as np
import pytest

from optax_sam.train.config import output_dir
from optax_sam.train.data import imagenet
from tests.train.data.imagenet import pictures

BLACK = np.zeros((51, 100, 3), np.uint8)


def _convert(source, target, *, stop_at=None, **options):
  """Returns manifest and messages; raises KeyboardInterrupt at `stop_at`."""
  said = []

  def say(text):
    said.append(text)
    if len(said) == stop_at:
      raise KeyboardInterrupt

  options = {'shards': 5, 'threads': 2} | options
  manifest = imagenet.convert(source, target, say=say, **options)
  return manifest, said


def _content(directory):
  return {path.name: path.read_bytes() for path in directory.iterdir()}


def _modes(directory):
  return {path.stat().st_mode & 0o777 for path in directory.iterdir()}


def test_a_conversion_reports_its_progress(folder, shards, tmp_path):
  target = tmp_path / 'a' / 'shards'
  former = os.umask(0o027)
  try:
    manifest, said = _convert(folder, target, threads=7)
  finally:
    os.umask(former)
  names = [f'train-0000{k}-of-00005.array_record' for k in range(5)]
  names.append('val-00000-of-00001.array_record')
  assert _content(target).keys() == {
    'manifest.json',
    '.lock',
    '.conversion',
    *names,
  }
  assert _modes(target) == {0o640}
  assert target.stat().st_mode & 0o777 == 0o750
  assert said[0] == 'train-00000-of-00005.array_record, 22 images'
  assert len(said) == len(names)
  assert [len(manifest.train), len(manifest.val)] == [5, 1]
  # The result is deterministic.
  assert _content(target) == _content(shards)


@pytest.mark.parametrize('line', [1, 5, 6])
def test_an_interrupted_conversion_resumes(folder, shards, tmp_path, line):
  target = tmp_path / 'shards'
  with pytest.raises(KeyboardInterrupt):
    _convert(folder, target, stop_at=line)
  assert not (target / 'manifest.json').exists()
  with pytest.raises(ValueError, match='is a conversion that was interrupted'):
    imagenet.open_images(target)
  if line == 1:  # as after a power failure
    partial = target / 'train-00004-of-00005.array_record'
    output_dir.unfinished(partial).write_bytes(b'half')
  if line == 5:
    pictures.truncate(target / 'train-00004-of-00005.array_record')
    line -= 1
  _, said = _convert(folder, target)
  there = [' exists, ' in text for text in said]
  assert there == [k < line for k in range(6)]
  assert _content(target) == _content(shards)


def test_a_finished_conversion_is_not_repeated(folder, own_shards):
  def times():
    return [x.stat().st_mtime_ns for x in sorted(own_shards.glob('*record'))]

  before = times()
  _, said = _convert(folder, own_shards)
  assert all(' exists, ' in text for text in said)
  assert times() == before


def test_corrupt_images_are_reported_and_left_out(own_folder, tmp_path):
  corrupt = own_folder / 'train' / 'n02' / 'n02_04.JPEG'
  pictures.truncate(corrupt)
  large = own_folder / 'train' / 'n01' / 'n01_00.JPEG'
  large.write_bytes(pictures.simplejpeg.encode_jpeg(BLACK))
  target = tmp_path / 'shards'
  with pytest.raises(KeyboardInterrupt):
    _convert(own_folder, target, stop_at=5, max_pixels=5000)
  _convert(own_folder, target, max_pixels=5000)
  _, said = _convert(own_folder, tmp_path / 'fresh', max_pixels=5000)
  (line,) = (text for text in said if str(corrupt) in text)
  assert line.startswith(f'{corrupt} is left out: it is not PNG or JPEG')
  assert f'{large} is left out: it has 100 x 51 pixels, more than' in said[0]
  # The shards have the indices of a folder without the images.
  corrupt.unlink()
  large.unlink()
  source, expected = (
    imagenet.open_images(path).train for path in (target, own_folder)
  )
  assert len(source) == len(expected) == 106
  for k in range(106):
    assert source[k] == expected[k]


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'shards': 0}, '--shards must be from 1 to 108, .* not 0'),
    ({'shards': 109}, '--shards must be from 1 to 108, .* not 109'),
    ({'source': pathlib.Path('nothing')}, 'train cannot be read: No such'),
    ({'target': pathlib.Path()}, '--output must be the path of a directory'),
  ],
)
def test_invalid_input_writes_nothing(
  folder, tmp_path, monkeypatch, changes, message
):
  monkeypatch.chdir(tmp_path)
  given = {'source': folder, 'target': tmp_path / 'shards'} | changes
  with pytest.raises(ValueError, match=message) as error:
    _convert(**given)
  assert '\n' not in str(error.value)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('split', ['train', 'val'])
def test_only_corrupt_images_are_an_error(own_folder, tmp_path, split):
  for path in own_folder.glob(f'{split}/*/*'):
    path.write_bytes(b'no image')
  message = f'none of the .* images of {own_folder / split} is usable: .* it is'
  with pytest.raises(ValueError, match=message):
    _convert(own_folder, tmp_path / 'shards')
  assert not (tmp_path / 'shards').exists()


def test_a_class_may_have_a_name_that_is_not_text(own_folder, tmp_path):
  for split in ('train', 'val'):
    path = own_folder / split
    (path / 'n01').rename(path / 'n\udcff')
  manifest, _ = _convert(own_folder, tmp_path / 'shards')
  assert manifest.classes == (*pictures.CLASSES[1:], r'n\udcff')
  images = imagenet.open_images(tmp_path / 'shards')
  assert images.classes == manifest.classes


def _refused(source, target, message, **changes):
  before = _content(target)
  with pytest.raises(ValueError, match=message) as error:
    _convert(source, target, **changes)
  assert str(target) in str(error.value)
  assert '\n' not in str(error.value)
  assert _content(target) == before


def test_a_target_that_is_not_this_conversion_raises(own_folder, own_shards):
  message = 'which is not of this conversion; choose an empty'
  _refused(own_folder, own_folder / 'val' / 'n01', message)
  _refused(own_folder, own_shards, message, shards=6)
  with output_dir.locked(own_shards):
    _refused(own_folder, own_shards, 'is being written by another')
  min(own_folder.glob('train/n01/*')).unlink()
  _refused(own_folder, own_shards, message)
