"""Shards: records, manifest, and detection of damage on opening."""

import json
import random

import numpy as np
import pytest
from array_record.python import array_record_module

from optax_sam.train.data import imagenet
from optax_sam.train.data.image_files import CorruptImage
from tests.train.data.imagenet import pictures

NAMES = [f'train-0000{k}-of-00005.array_record' for k in range(5)]


def test_shards_have_the_images_of_the_folder(folder, shards):
  of_folder, of_shards = map(imagenet.open_images, (folder, shards))
  assert of_shards.classes == of_folder.classes
  for name in ('train', 'val'):
    source, expected = getattr(of_shards, name), getattr(of_folder, name)
    assert list(map(source.__getitem__, range(len(source)))) == list(
      map(expected.__getitem__, range(len(expected)))
    )


def _edited(**changes):
  """Returns a function that changes keys of the manifest."""

  def edit(directory):
    path = directory / 'manifest.json'
    manifest = json.loads(path.read_text())
    for key, change in changes.items():
      manifest[key] = change(manifest[key])
    path.write_text(json.dumps(manifest))

  return edit


def _written(content):
  return lambda x: (x / 'manifest.json').write_bytes(content)


def _swapped(directory):
  first, second = (directory / NAMES[k] for k in (1, 2))
  first.rename(directory / 'third')
  second.rename(first)
  (directory / 'third').rename(second)


def _relabelled(directory):
  """Rewrites the last shard with labels outside of the classes."""
  path = directory / NAMES[4]
  reader = array_record_module.ArrayRecordReader(str(path))
  records = reader.read_all()
  reader.close()
  writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1')
  for record in records:
    writer.write(b'\x09\0\0\0' + record[4:])
  writer.close()


AGAIN = 'copy it again or convert the images again'
NOT = r'manifest\.json cannot be read: '


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    # Files
    (
      lambda x: (x / NAMES[0]).unlink(),
      f'{NAMES[0]} cannot be read: it should be the file that',
    ),
    (
      lambda x: pictures.truncate(x / NAMES[0]),
      f'{NAMES[0]} is damaged, or not',
    ),
    (
      lambda x: (x / NAMES[0]).write_bytes(bytes(2**17)),
      f'{NAMES[0]} is damaged, or not .* {AGAIN}',
    ),
    (_swapped, f'{NAMES[1]} is damaged, or not the file that manifest.json'),
    (lambda x: (x / NAMES[1]).rename(x / NAMES[0]), f'{NAMES[0]} is damaged'),
    (_relabelled, f'{NAMES[4]} is damaged, or not the file'),
    # Numbers and names
    (_edited(classes=lambda x: x[:-1]), 'has the label 5, outside of 0 to 4'),
    (
      _edited(train=lambda x: x[:-1]),
      'train-00000-of-00004.* cannot be read',
    ),
    (_edited(train=lambda x: [x[1], x[0], *x[2:]]), f'{NAMES[0]} is damaged'),
    # Types and ranges
    (_edited(train=lambda x: ['../x', *x[1:]]), NOT + r'.*\$.train\[0\]`'),
    (_edited(train=lambda x: [9, *x[1:]]), NOT + '.*`str`, got `int` - at'),
    (_edited(classes=lambda _: []), NOT + r'.*length >= 1 - at `\$.classes`'),
    (_edited(classes=lambda _: [0]), NOT + r'.*`str`, got `int` - at'),
    (_edited(val=lambda _: []), NOT + r'.*length >= 1 - at `\$.val`'),
    (_edited(val=lambda _: {}), NOT + r'.*got `object` - at `\$.val`'),
    (_edited(format=lambda _: 'another'), NOT + r'.* - at `\$.format`'),
    (_written(b'{}'), NOT + 'Object missing required field `classes`'),
    (_written(b'[' * 100_000), NOT),
    (_written(b'{"format":' + b'[' * 100_000), NOT),
    (_written(b'\xff'), NOT),
    (_written(b''), NOT),
  ],
)
def test_wrong_data_are_reported_in_one_line(own_shards, damage, message):
  damage(own_shards)
  with pytest.raises(ValueError, match=message) as error:
    imagenet.open_images(own_shards)
  assert str(own_shards) in str(error.value)
  assert '\n' not in str(error.value)


def test_a_label_outside_of_the_classes_raises_when_it_is_read(
  own_shards, monkeypatch
):
  """The fingerprint and the last label agree."""
  images = imagenet.ImageInputs(
    own_shards, batch_size=12, size=8, threads=2, say=pytest.fail
  )
  monkeypatch.setattr(images._images.train, '_classes', 3)
  message = rf'{own_shards}, train image \d+ has the label [345], outside of 0'
  with pytest.raises(ValueError, match=message) as error:
    images.batch(0, seed=0)
  assert '\n' not in str(error.value)


def test_a_damaged_record_is_a_corrupt_image(own_shards, said):
  images = imagenet.ImageInputs(
    own_shards, batch_size=108, size=8, threads=2, say=said.append
  )
  source = images._images.train
  lengths = [len(source[index].content) for index in range(len(source))]
  index = int(np.argmax(lengths))
  jpeg = source[index].content
  path = next(x for x in own_shards.glob('train*') if jpeg in x.read_bytes())
  place = path.read_bytes().index(jpeg) + len(jpeg) // 2
  with path.open('r+b') as file:
    file.seek(place)
    file.write(b'damage')
  with pytest.raises(CorruptImage, match='the record cannot be read'):
    source[index]
  assert images.fixed(108)['is_example'].sum() == 107
  (line,) = said
  assert line.startswith(f'{source.where(index)} cannot be decoded')


def _damaged(content, generator):
  """Returns content with one to four random changes."""
  changed = bytearray(content)
  inserts = (
    b'9' * 30,
    b'[' * 5000,
    b'null',
    b'-1',
    b'1e400',
    b'"../x"',
    b'\xff',
  )
  for _ in range(generator.randint(1, 4)):
    place = generator.randrange(len(changed))
    kind = generator.randrange(3)
    if kind == 0:
      changed[place] = generator.randrange(256)
    elif kind == 1:
      changed[place : place + generator.randrange(40)] = b''
    else:
      changed[place:place] = generator.choice(inserts)
  return bytes(changed)


@pytest.mark.parametrize('seed', range(4))
def test_random_damage_is_refused_in_one_line_or_changes_nothing(
  shards, own_shards, seed
):
  generator = random.Random(seed)
  expected = imagenet.open_images(shards).train
  for _ in range(30):
    name = generator.choice(['manifest.json', 'manifest.json', *NAMES])
    content = (shards / name).read_bytes()
    (own_shards / name).write_bytes(_damaged(content, generator))
    found, refusal = expected, str(own_shards)
    try:
      found = imagenet.open_images(own_shards).train
    except ValueError as error:
      refusal = str(error)
    assert str(own_shards) in refusal
    assert '\n' not in refusal
    assert len(refusal) < 1000
    if found is not expected:
      assert [found[k] for k in range(0, 108, 9)] == [
        expected[k] for k in range(0, 108, 9)
      ]
    (own_shards / name).write_bytes(content)
