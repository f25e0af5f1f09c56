"""Conversions: whole, interrupted, refused."""

import json
import pathlib

import pytest

from optax_sam.train.data import imagenet
from optax_sam.train.data.imagenet import conversion
from tests.train.data.imagenet import pictures


def _convert(source, target, *, shards=5, threads=2, stop_at=None):
  """Returns the manifest and what was said; Ctrl-C may come at a line."""
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


def test_a_conversion_says_what_it_does(folder, shards, tmp_path):
  target = tmp_path / 'a' / 'shards'
  manifest, said = _convert(folder, target, threads=7)
  names = [f'train-0000{k}-of-00005.array_record' for k in range(5)]
  names.append('val-00000-of-00001.array_record')
  assert _content(target).keys() == {'manifest.json', *names}
  assert len(said) == len(names)
  assert said[0] == f'train 1/5: {names[0]}, 22 images'
  assert said[5] == f'val 1/1: {names[5]}, 24 images'
  assert manifest.splits['train'].examples == 108
  assert manifest.splits['val'].examples == 24
  # It is the same every time.
  assert _content(target) == _content(shards)


@pytest.mark.parametrize('line', [1, 5, 6])
def test_an_interrupted_conversion_goes_on(folder, shards, tmp_path, line):
  target = tmp_path / 'shards'
  with pytest.raises(KeyboardInterrupt):
    _convert(folder, target, stop_at=line)
  assert not (target / 'manifest.json').exists()
  with pytest.raises(ValueError, match='is a conversion that was interrupted'):
    imagenet.open_images(target)
  _, said = _convert(folder, target)
  there = [' is there, ' in text for text in said]
  assert there == [k < line for k in range(6)]
  assert _content(target) == _content(shards)


def test_an_interrupted_shard_is_written_again(
  folder, shards, tmp_path, monkeypatch
):
  check, left = conversion.transforms.check, iter(range(50))

  def stop(jpeg):
    if next(left, None) is None:
      raise KeyboardInterrupt
    check(jpeg)

  with monkeypatch.context() as patch:
    patch.setattr(conversion.transforms, 'check', stop)
    with pytest.raises(KeyboardInterrupt):
      _convert(folder, tmp_path)
  assert not list(tmp_path.glob('*.partial'))
  assert 0 < len(list(tmp_path.glob('*.array_record'))) < 6
  # As after a power cut.
  partial = tmp_path / 'train-00004-of-00005.array_record.partial'
  partial.write_bytes(b'half')
  _convert(folder, tmp_path)
  assert _content(tmp_path) == _content(shards)


def test_a_finished_conversion_is_left_alone(folder, own_shards):
  def times():
    return [path.stat().st_mtime_ns for path in sorted(own_shards.iterdir())]

  before = times()
  _, said = _convert(folder, own_shards)
  assert said == [f'{own_shards} is converted already']
  assert times() == before


@pytest.mark.parametrize('damage', [pictures.truncate, pathlib.Path.unlink])
def test_a_damaged_shard_is_written_again(folder, shards, own_shards, damage):
  path = own_shards / 'train-00002-of-00005.array_record'
  damage(path)
  _, (complaint, *said) = _convert(folder, own_shards)
  assert complaint.startswith(f'{path} ')
  assert complaint.endswith('; it is written again')
  there = [' is there, ' in text for text in said]
  assert there == [k != 2 for k in range(6)]
  assert _content(own_shards) == _content(shards)


def test_corrupt_images_are_named_and_left_out(own_folder, tmp_path):
  corrupt = own_folder / 'train' / 'n02' / 'n02_04.JPEG'
  pictures.truncate(corrupt)
  target = tmp_path / 'shards'
  with pytest.raises(KeyboardInterrupt):
    _convert(own_folder, target, stop_at=5)
  manifest, _ = _convert(own_folder, target)
  assert manifest.splits['train'].examples == 107
  assert manifest.splits['train'].corrupt == {'n02/n02_04.JPEG': 22}
  content = json.loads((target / 'manifest.json').read_text())
  assert content['splits']['train']['images'] == 108
  _, said = _convert(own_folder, tmp_path / 'fresh')
  assert said.count(f'{corrupt} cannot be decoded and is left out') == 1
  # The shards are counted as a folder that never had it.
  corrupt.unlink()
  source, expected = (
    imagenet.open_images(path).train for path in (target, own_folder)
  )
  for k in range(107):
    assert source[k].name == expected[k].name


def test_a_split_of_corrupt_images_alone_is_an_error(own_folder, tmp_path):
  for path in own_folder.glob('val/*/*'):
    path.write_bytes(b'no image')
  with pytest.raises(ValueError, match='none of the 24 images of val can be'):
    _convert(own_folder, tmp_path / 'shards')


@pytest.mark.parametrize(
  ('changes', 'complaint'),
  [
    ({'shards': 0}, '--shards must be at least 1, not 0'),
    ({'shards': 109}, 'at most the number of training images, 108, not'),
    ({'threads': 0}, '--threads must be at least 1, not 0'),
    ({'source': pathlib.Path('nothing')}, 'train is missing'),
  ],
)
def test_bad_input_leaves_nothing(folder, tmp_path, changes, complaint):
  given = {'source': folder, 'target': tmp_path / 'shards'} | changes
  with pytest.raises(ValueError, match=complaint):
    _convert(**given)
  assert not (tmp_path / 'shards').exists()


def _refused(source, target, complaint, **changes):
  before = _content(target) if target.is_dir() else None
  with pytest.raises(ValueError, match=complaint) as error:
    _convert(source, target, **changes)
  assert str(error.value).startswith(str(target))
  assert '\n' not in str(error.value)
  if before is not None:
    assert _content(target) == before


def test_a_target_that_is_no_conversion_is_refused(own_folder, tmp_path):
  with pytest.raises(ValueError, match="holds 'train' and is no conversion"):
    _convert(own_folder, own_folder)
  target = tmp_path / 'target'
  target.symlink_to(tmp_path / 'nothing')
  _refused(own_folder, target, 'is a link to nothing; choose another directory')
  target.unlink()
  target.touch()
  _refused(own_folder, target, 'is not a directory; choose another one')


def test_another_conversion_is_refused(own_folder, own_shards):
  (own_shards / 'notes.txt').touch()
  _refused(own_folder, own_shards, "also holds 'notes.txt', which is none of")
  (own_shards / 'notes.txt').unlink()
  complaint = 'is a conversion of other images or into another number of shards'
  _refused(own_folder, own_shards, complaint, shards=6)
  path = own_folder / 'train' / 'n01' / 'n01_00.JPEG'
  path.rename(path.with_name('another.JPEG'))
  _refused(own_folder, own_shards, complaint)


def test_a_full_disk_leaves_no_shard(folder, tmp_path, monkeypatch):
  class Full(conversion.array_record_module.ArrayRecordWriter):
    written = 0

    def write(self, record):
      self.written += 1
      if self.written > 30:
        msg = 'no room'
        raise RuntimeError(msg)
      super().write(record)

  monkeypatch.setattr(conversion.array_record_module, 'ArrayRecordWriter', Full)
  with pytest.raises(OSError, match='no room') as error:
    _convert(folder, tmp_path, shards=2)
  assert error.value.filename.endswith('train-00000-of-00002.array_record')
  assert _content(tmp_path).keys() == {'unfinished.json'}
