"""Conversions: complete, interrupted, rejected."""

import pathlib

import pytest

from optax_sam.train.data import imagenet
from tests.train.data.imagenet import pictures


def _convert(source, target, *, shards=5, threads=2, stop_at=None):
  """Returns manifest and messages; raises KeyboardInterrupt at `stop_at`."""
  said = []

  def say(text):
    said.append(text)
    if len(said) == stop_at:
      raise KeyboardInterrupt

  manifest = imagenet.convert(
    source, target, shards=shards, threads=threads, say=say
  )
  return manifest, said


def _content(directory):
  return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_conversion_reports_its_progress(folder, shards, tmp_path):
  target = tmp_path / 'a' / 'shards'
  manifest, said = _convert(folder, target, threads=7)
  names = [f'train-0000{k}-of-00005.array_record' for k in range(5)]
  names.append('val-00000-of-00001.array_record')
  assert _content(target).keys() == {'manifest.json', *names}
  assert len(said) == len(names)
  assert manifest.splits['train'].examples == 108
  assert manifest.splits['val'].examples == 24
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
    partial = target / 'train-00004-of-00005.array_record.partial'
    partial.write_bytes(b'half')
  _, said = _convert(folder, target)
  there = [' exists, ' in text for text in said]
  assert there == [k < line for k in range(6)]
  assert _content(target) == _content(shards)


def test_a_finished_conversion_is_not_repeated(folder, own_shards):
  def times():
    return [path.stat().st_mtime_ns for path in sorted(own_shards.iterdir())]

  before = times()
  _, said = _convert(folder, own_shards)
  assert said == [f'{own_shards} is converted already']
  assert times() == before


def test_corrupt_images_are_reported_and_left_out(own_folder, tmp_path):
  corrupt = own_folder / 'train' / 'n02' / 'n02_04.JPEG'
  pictures.truncate(corrupt)
  target = tmp_path / 'shards'
  with pytest.raises(KeyboardInterrupt):
    _convert(own_folder, target, stop_at=5)
  manifest, _ = _convert(own_folder, target)
  assert manifest.splits['train'].examples == 107
  assert manifest.splits['train'].corrupt == {'n02/n02_04.JPEG': 22}
  _, said = _convert(own_folder, tmp_path / 'fresh')
  assert said.count(f'{corrupt} cannot be decoded and is left out') == 1
  # The shards have the indices of a folder without the image.
  corrupt.unlink()
  source, expected = (
    imagenet.open_images(path).train for path in (target, own_folder)
  )
  for k in range(107):
    assert source[k].name == expected[k].name


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'shards': 0}, '--shards must be at least 1, not 0'),
    ({'shards': 109}, 'at most the number of training images, 108, not'),
    ({'threads': 0}, '--threads must be at least 1, not 0'),
    ({'source': pathlib.Path('nothing')}, 'train is missing'),
  ],
)
def test_invalid_input_writes_nothing(folder, tmp_path, changes, message):
  given = {'source': folder, 'target': tmp_path / 'shards'} | changes
  with pytest.raises(ValueError, match=message):
    _convert(**given)
  assert not (tmp_path / 'shards').exists()


def _refused(source, target, message, **changes):
  before = _content(target) if target.is_dir() else None
  with pytest.raises(ValueError, match=message) as error:
    _convert(source, target, **changes)
  assert str(error.value).startswith(str(target))
  assert '\n' not in str(error.value)
  if before is not None:
    assert _content(target) == before


def test_a_target_that_is_not_a_conversion_raises(own_folder, tmp_path):
  with pytest.raises(
    ValueError, match="contains 'train' and is not a conversion"
  ):
    _convert(own_folder, own_folder)
  target = tmp_path / 'target'
  target.touch()
  _refused(own_folder, target, 'is not a directory; choose another one')


def test_a_target_with_another_conversion_raises(own_folder, own_shards):
  message = 'is a conversion of other images or into another number of shards'
  _refused(own_folder, own_shards, message, shards=6)
  path = own_folder / 'train' / 'n01' / 'n01_00.JPEG'
  path.rename(path.with_name('another.JPEG'))
  _refused(own_folder, own_shards, message)
