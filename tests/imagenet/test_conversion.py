"""Conversions: whole, interrupted, refused."""

import json
import shutil

import pytest

from optax_sam.train.data import imagenet
from optax_sam.train.data.imagenet import conversion
from tests.imagenet import pictures


def _convert(source, target, said, shards=5):
  return imagenet.convert(
    source, target, shards=shards, threads=2, say=said.append
  )


def _content(directory):
  return {path.name: path.read_bytes() for path in directory.iterdir()}


class _Stop(Exception):  # noqa: N818
  pass


def _stop_at(line):
  """Returns a callback that interrupts a conversion at a line it says."""
  lines = []

  def say(text):
    lines.append(text)
    if len(lines) == line:
      raise _Stop

  return say


def test_a_conversion_says_what_it_does(folder, tmp_path, said):
  target = tmp_path / 'a' / 'shards'
  manifest = _convert(folder, target, said)
  assert said == [
    *(
      f'train {k + 1}/5: train-0000{k}-of-00005.array_record, {count} images'
      for k, count in enumerate((22, 22, 22, 21, 21))
    ),
    'val 1/1: val-00000-of-00001.array_record, 24 images',
  ]
  assert manifest.splits['train'].examples == 108
  assert manifest.splits['val'].examples == 24
  names = sorted(path.name for path in target.iterdir())
  assert names == [
    'manifest.json',
    *(f'train-0000{k}-of-00005.array_record' for k in range(5)),
    'val-00000-of-00001.array_record',
  ]


def test_a_conversion_is_the_same_every_time(folder, shards, tmp_path, said):
  imagenet.convert(
    folder, tmp_path / 'again', shards=5, threads=7, say=said.append
  )
  assert _content(tmp_path / 'again') == _content(shards)


@pytest.mark.parametrize('line', [1, 3, 5, 6])
def test_an_interrupted_conversion_goes_on(folder, shards, tmp_path, line):
  target = tmp_path / 'shards'
  with pytest.raises(_Stop):
    imagenet.convert(folder, target, shards=5, say=_stop_at(line))
  assert not (target / 'manifest.json').exists()
  with pytest.raises(ValueError, match='is a conversion that was interrupted'):
    imagenet.open_images(target)
  said = []
  _convert(folder, target, said)
  assert [' is there, ' in text for text in said] == [
    k < line for k in range(6)
  ]
  assert _content(target) == _content(shards)


def test_an_interrupted_shard_is_written_again(
  folder, shards, tmp_path, monkeypatch, said
):
  target = tmp_path / 'shards'
  check, left = conversion.transforms.check, iter(range(50))

  def stop(jpeg):
    if next(left, None) is None:
      raise KeyboardInterrupt
    check(jpeg)

  monkeypatch.setattr(conversion.transforms, 'check', stop)
  with pytest.raises(KeyboardInterrupt):
    _convert(folder, target, said)
  monkeypatch.undo()
  assert not list(target.glob('*.partial'))
  done = [path.name for path in target.glob('*.array_record')]
  assert 0 < len(done) < 6
  # As after a power cut.
  (target / 'train-00004-of-00005.array_record.partial').write_bytes(b'half')
  _convert(folder, target, said)
  assert _content(target) == _content(shards)


def test_a_conversion_stopped_before_it_began_starts(folder, tmp_path, said):
  (tmp_path / 'unfinished.json.partial').write_text('{"form')
  _convert(folder, tmp_path, said)
  assert len(said) == 6
  assert not list(tmp_path.glob('*.partial'))


def test_a_finished_conversion_is_left_alone(folder, own_shards, said):
  before = {path.name: path.stat().st_mtime_ns for path in own_shards.iterdir()}
  _convert(folder, own_shards, said)
  assert said == [f'{own_shards} is converted already']
  after = {path.name: path.stat().st_mtime_ns for path in own_shards.iterdir()}
  assert after == before


@pytest.mark.parametrize('damage', [pictures.truncate, lambda x: x.unlink()])
def test_a_damaged_shard_is_written_again(
  folder, shards, own_shards, said, damage
):
  path = own_shards / 'train-00002-of-00005.array_record'
  damage(path)
  _convert(folder, own_shards, said)
  assert said[0].startswith(f'{path} ')
  assert said[0].endswith('; it is written again')
  assert [' is there, ' in text for text in said[1:]] == [
    k != 2 for k in range(6)
  ]
  assert _content(own_shards) == _content(shards)


def test_corrupt_images_are_named_and_left_out(own_folder, tmp_path, said):
  corrupt = own_folder / 'train' / 'n02' / 'n02_04.JPEG'
  pictures.truncate(corrupt)
  target = tmp_path / 'shards'
  with pytest.raises(_Stop):
    imagenet.convert(own_folder, target, shards=5, say=_stop_at(5))
  manifest = _convert(own_folder, target, said)
  assert manifest.splits['train'].examples == 107
  assert manifest.splits['train'].corrupt == {'n02/n02_04.JPEG': 22}
  content = json.loads((target / 'manifest.json').read_text())
  assert content['splits']['train']['images'] == 108
  fresh = []
  _convert(own_folder, tmp_path / 'fresh', fresh)
  line = f'{corrupt} cannot be decoded and is left out'
  assert fresh.count(line) == 1
  # The shards are counted as a folder that never had it.
  corrupt.unlink()
  source = imagenet.open_images(target).train
  expected = imagenet.open_images(own_folder).train
  assert [source[k].name for k in range(107)] == [
    expected[k].name for k in range(107)
  ]


def test_a_split_of_corrupt_images_alone_is_an_error(
  own_folder, tmp_path, said
):
  for path in own_folder.glob('val/*/*'):
    path.write_bytes(b'no image')
  with pytest.raises(ValueError, match='none of the 24 images of val can be'):
    _convert(own_folder, tmp_path / 'shards', said)


@pytest.mark.parametrize(
  ('shards', 'complaint'),
  [
    (0, '--shards must be at least 1, not 0'),
    (109, '--shards must be at most the number of training images, 108, not'),
  ],
)
def test_a_wrong_number_of_shards_is_one_line(
  folder, tmp_path, said, shards, complaint
):
  with pytest.raises(ValueError, match=complaint):
    _convert(folder, tmp_path / 'shards', said, shards=shards)
  assert not (tmp_path / 'shards').exists()


def test_threads_are_checked(folder, tmp_path, said):
  with pytest.raises(ValueError, match='--threads must be at least 1, not 0'):
    imagenet.convert(folder, tmp_path, shards=1, threads=0, say=said.append)


def test_a_wrong_folder_leaves_nothing(tmp_path, said):
  with pytest.raises(ValueError, match='train is missing'):
    _convert(tmp_path / 'nothing', tmp_path / 'shards', said)
  assert list(tmp_path.iterdir()) == []


def test_one_shard_for_each_image_will_do(folder, tmp_path, said):
  _convert(folder, tmp_path / 'shards', said, shards=108)
  images = imagenet.open_images(tmp_path / 'shards')
  assert (len(images.train), len(images.val)) == (108, 24)


def _refused(source, target, complaint, shards=5):
  before = _content(target) if target.is_dir() else None
  with pytest.raises(ValueError, match=complaint) as error:
    _convert(source, target, [], shards=shards)
  assert str(error.value).startswith(str(target))
  assert '\n' not in str(error.value)
  if before is not None:
    assert _content(target) == before


def test_a_directory_of_something_else_is_refused(folder, tmp_path):
  (tmp_path / 'letter.txt').write_text('Dear Sir')
  _refused(
    folder, tmp_path, "holds 'letter.txt' and is no conversion of ours; choose"
  )


def test_the_folder_itself_is_refused(own_folder):
  with pytest.raises(ValueError, match="holds 'train' and is no conversion"):
    _convert(own_folder, own_folder, [])


def test_a_file_is_refused(folder, tmp_path):
  target = tmp_path / 'file'
  target.touch()
  _refused(folder, target, 'is not a directory; choose another one')


def test_a_link_to_nothing_is_refused(folder, tmp_path):
  target = tmp_path / 'link'
  target.symlink_to(tmp_path / 'nothing')
  _refused(folder, target, 'is a link to nothing; choose another directory')


def test_foreign_files_among_shards_are_refused(folder, own_shards):
  (own_shards / 'notes.txt').touch()
  _refused(folder, own_shards, "also holds 'notes.txt', which is none of the")


def test_another_number_of_shards_is_refused(folder, own_shards):
  _refused(folder, own_shards, 'into another number of shards', shards=6)


def test_other_images_are_refused(own_folder, own_shards):
  path = own_folder / 'train' / 'n01' / 'n01_00.JPEG'
  shutil.move(path, path.with_name('another.JPEG'))
  _refused(own_folder, own_shards, 'is a conversion of other images')


def test_a_full_disk_leaves_no_shard(folder, tmp_path, said, monkeypatch):
  writer = conversion.array_record_module.ArrayRecordWriter

  class Full:
    def __init__(self, *args):
      self._writer = writer(*args)
      self._room = iter(range(30))

    def write(self, record):
      if next(self._room, None) is None:
        msg = 'no room'
        raise RuntimeError(msg)
      self._writer.write(record)

    def close(self):
      self._writer.close()

  monkeypatch.setattr(conversion.array_record_module, 'ArrayRecordWriter', Full)
  target = tmp_path / 'shards'
  with pytest.raises(OSError, match='no room') as error:
    _convert(folder, target, said, shards=2)
  assert error.value.filename.endswith('train-00000-of-00002.array_record')
  assert [path.name for path in target.iterdir()] == ['unfinished.json']
