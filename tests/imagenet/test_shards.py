"""Shards: records, the manifest, and what is noticed when they are opened."""

import json

import numpy as np
import pytest
from array_record.python import array_record_module

from optax_sam.train.data import imagenet
from optax_sam.train.data.imagenet import shards as shards_lib
from optax_sam.train.data.imagenet.sources import CorruptImage, Example
from tests.imagenet import pictures

_FIRST = 'train-00000-of-00005.array_record'


def _edit(path, change):
  content = json.loads(path.read_text())
  change(content)
  path.write_text(json.dumps(content))


def _complaint(directory):
  with pytest.raises(ValueError, match=str(directory)) as error:
    imagenet.open_images(directory)
  message = str(error.value)
  assert '\n' not in message
  return message


def test_a_record_keeps_everything():
  example = Example(b'\xff\xd8...', 999, 'n02/ä.JPEG')
  assert shards_lib.decode(shards_lib.encode(example)) == example


@pytest.mark.parametrize('record', [b'', b'OSI', b'something else entirely'])
def test_another_record_is_noticed(record):
  with pytest.raises(ValueError, match='is not an image of ours'):
    shards_lib.decode(record)


def test_shards_are_counted_as_the_folder(folder, shards):
  of_folder, of_shards = map(imagenet.open_images, (folder, shards))
  assert of_shards.classes == of_folder.classes
  for name in ('train', 'val'):
    source, expected = getattr(of_shards, name), getattr(of_folder, name)
    assert len(source) == len(expected)
    for index in range(len(source)):
      assert source[index] == expected[index]


def test_shards_are_mixed(shards):
  manifest = json.loads((shards / 'manifest.json').read_text())
  for file, shard in manifest['splits']['train']['shards'].items():
    reader = array_record_module.ArrayRecordReader(str(shards / file))
    records = reader.read_all()
    reader.close()
    assert len(records) == shard['examples']
    labels = [shards_lib.decode(record).label for record in records]
    # 21 or 22 images of 6 classes: never 3 classes alone.
    assert len(set(labels)) > 3
    assert labels != sorted(labels)


def test_files_are_read_record_by_record(shards):
  reader = array_record_module.ArrayRecordReader(str(shards / _FIRST))
  options = reader.writer_options_string()
  reader.close()
  assert 'group_size:1,' in options
  assert 'uncompressed' in options


def test_where_finds_the_record(shards):
  source = imagenet.open_images(shards).train
  for index in range(len(source)):
    path, _, record = source.where(index).partition(', record ')
    reader = array_record_module.ArrayRecordReader(path)
    found = reader.read([int(record)])[0]
    reader.close()
    assert shards_lib.decode(found) == source[index]


def test_a_missing_shard_is_one_line(own_shards):
  (own_shards / _FIRST).unlink()
  assert _complaint(own_shards) == (
    f'{own_shards / _FIRST} is missing; it should hold 22 images; '
    f'copy it again or convert the images again'
  )


def test_a_truncated_shard_is_one_line(own_shards):
  path = own_shards / _FIRST
  size = path.stat().st_size
  pictures.truncate(path)
  assert _complaint(own_shards) == (
    f'{path} has {size // 2} bytes instead of {size}; '
    f'copy it again or convert the images again'
  )


def test_a_count_that_differs_is_one_line(own_shards):
  def change(content):
    content['splits']['train']['shards'][_FIRST]['examples'] = 23

  _edit(own_shards / 'manifest.json', change)
  assert _complaint(own_shards) == (
    f'{own_shards / _FIRST} holds 22 images instead of 23; '
    f'copy it again or convert the images again'
  )


def test_a_file_of_the_right_size_must_be_a_shard(own_shards):
  path = own_shards / _FIRST
  path.write_bytes(bytes(path.stat().st_size))
  assert 'holds 0 images instead of 22' in _complaint(own_shards)


def test_a_manifest_must_list_all_shards(own_shards):
  def change(content):
    del content['splits']['val']['shards']['val-00000-of-00001.array_record']

  _edit(own_shards / 'manifest.json', change)
  assert _complaint(own_shards) == (
    f'{own_shards / "manifest.json"} does not list all shards of val; '
    f'convert the images again, into an empty directory'
  )


@pytest.mark.parametrize(
  'text', ['', '[]', '{}', '{"format": "other", "version": 1}']
)
def test_a_damaged_manifest_is_one_line(own_shards, text):
  (own_shards / 'manifest.json').write_text(text)
  message = _complaint(own_shards)
  assert message.startswith(f'{own_shards / "manifest.json"} is not a manifest')
  assert message.endswith('convert the images again, into an empty directory')


def test_an_unfinished_conversion_is_not_opened(own_shards):
  (own_shards / 'manifest.json').rename(own_shards / 'unfinished.json')
  assert _complaint(own_shards) == (
    f'{own_shards} is a conversion that was interrupted; '
    f'run it again, it goes on where it was'
  )


def test_a_damaged_record_is_a_corrupt_image(own_shards, said):
  source = imagenet.open_images(own_shards).train
  lengths = [len(source[index].jpeg) for index in range(len(source))]
  index = int(np.argmax(lengths))
  path, _, _ = source.where(index).partition(', record ')
  jpeg = source[index].jpeg
  with open(path, 'r+b') as file:  # noqa: PTH123 (in place)
    content = file.read()
    file.seek(content.index(jpeg) + len(jpeg) // 2)
    file.write(b'damage')
  source = imagenet.open_images(own_shards).train
  with pytest.raises(CorruptImage, match='the record cannot be read'):
    source[index]
  options = imagenet.InputOptions(batch_size=12, size=8, threads=2)
  evaluation = imagenet.EvaluationInput(source, options, say=said.append)
  assert sum(batch['is_example'].sum() for batch in evaluation) == 107
  (line,) = said
  assert line.startswith(f'{source.where(index)} cannot be decoded')
