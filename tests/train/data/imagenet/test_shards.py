"""Shards: records, manifest, and detection of damage on opening."""

import pathlib

import numpy as np
import pytest

from optax_sam.train.data import imagenet
from optax_sam.train.data.imagenet.sources import CorruptImage
from tests.train.data.imagenet import pictures

_FIRST = 'train-00000-of-00005.array_record'


def test_shards_have_the_indices_of_the_folder(folder, shards):
  of_folder, of_shards = map(imagenet.open_images, (folder, shards))
  assert of_shards.classes == of_folder.classes
  for name in ('train', 'val'):
    source, expected = getattr(of_shards, name), getattr(of_folder, name)
    assert len(source) == len(expected)
    for index in range(len(source)):
      assert source[index] == expected[index]


def _edit(old, new):
  def edit(path):
    manifest = path.with_name('manifest.json')
    manifest.write_text(manifest.read_text().replace(old, new, 1))

  return edit


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (pathlib.Path.unlink, f'{_FIRST} is missing; it should contain 22'),
    (pictures.truncate, f'{_FIRST} has .* bytes instead of'),
    (
      lambda path: path.write_bytes(bytes(path.stat().st_size)),
      f'{_FIRST} contains 0 images instead of 22',
    ),
    (
      _edit('"examples": 22', '"examples": 23'),
      f'{_FIRST} contains 22 images instead of 23',
    ),
    (
      _edit('"shard_count": 1', '"shard_count": 2'),
      'not list all shards of val',
    ),
    (_edit('"version": 1', '"version": 2'), 'manifest.json is not a manifest'),
    (_edit('{', ''), 'manifest.json is not a manifest'),
  ],
)
def test_damage_is_reported_in_one_line(own_shards, damage, message):
  damage(own_shards / _FIRST)
  with pytest.raises(ValueError, match=message) as error:
    imagenet.open_images(own_shards)
  assert str(own_shards) in str(error.value)
  assert '\n' not in str(error.value)


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
