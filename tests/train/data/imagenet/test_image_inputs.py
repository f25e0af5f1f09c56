"""Batches: order, processes, resuming, evaluation, corrupt images."""

import collections
import contextlib

import numpy as np
import pytest

from optax_sam.train.data import imagenet
from tests.train.data.imagenet import pictures
from tests.train.problems import assert_equal

_SIZE = 8


def _inputs(directory, batch_size=12, say=pytest.fail, **more):
  options = {'size': _SIZE, 'threads': 3, 'prefetch': 3, 'process': (0, 1)}
  return imagenet.ImageInputs(
    directory, batch_size=batch_size, say=say, **(options | more)
  )


def _batches(steps, *args, seed=0, **keywords):
  with contextlib.closing(_inputs(*args, **keywords)) as found:
    return [found.batch(step, seed, ids=True) for step in steps]


def _global_batches(steps, processes, *args, **keywords):
  """Returns global batches: the rows of all processes, concatenated."""
  parts = [
    _batches(steps, *args, process=(k, processes), **keywords)
    for k in range(processes)
  ]
  return [
    {name: np.concatenate([part[name] for part in step]) for name in step[0]}
    for step in zip(*parts, strict=True)
  ]


def _recognized(batches, known):
  """Returns the indices of the images of some batches."""
  return [k for batch in batches for k in pictures.recognize(batch, known)]


@pytest.fixture
def damaged(own_folder):
  """The paths of one corrupt image in each split of a folder."""
  paths = [
    own_folder / 'train' / 'n02' / 'n02_04.JPEG',
    own_folder / 'val' / 'n03' / 'n03_00.JPEG',
  ]
  for path in paths:
    pictures.truncate(path)
  return paths


@pytest.mark.parametrize('batch_size', [12, 20])
def test_an_epoch_shows_every_image_at_most_once(folder, batch_size):
  train = imagenet.open_images(folder).train
  known = pictures.colours(train)
  count = 108 // batch_size
  steps = _batches(range(2 * count), folder, batch_size)
  assert steps[0]['inputs'].shape == (batch_size, _SIZE, _SIZE, 3)
  assert steps[0]['inputs'].dtype == np.uint8
  assert steps[0]['labels'].dtype == np.int32
  labels = np.array([train[index].label for index in range(len(train))])
  seen = []
  for epoch in (steps[:count], steps[count:]):
    shown = _recognized(epoch, known)
    assert len(set(shown)) == len(shown) == count * batch_size
    given = np.concatenate([batch['labels'] for batch in epoch])
    np.testing.assert_array_equal(given, labels[shown])
    ids = np.concatenate([batch['ids'] for batch in epoch])
    np.testing.assert_array_equal(ids, shown)
    seen.append(shown)
  assert seen[0] != seen[1]
  # Each epoch leaves out different images.
  assert (set(seen[0]) == set(seen[1])) == (batch_size == 12)


@pytest.mark.parametrize('processes', [2, 4])
@pytest.mark.parametrize('batch_size', [12, 16])
def test_a_step_is_the_same_for_any_number_of_processes(
  folder, processes, batch_size
):
  # More than two epochs; 16 does not divide the number of images.
  alone = _batches(range(20), folder, batch_size)
  found = _global_batches(range(20), processes, folder, batch_size)
  assert_equal(found, alone)


def test_batches_depend_only_on_step_and_seed(folder):
  first = _batches(range(4), folder)
  assert_equal(_batches(range(4), folder, threads=1, prefetch=1), first)
  assert_equal(_batches(range(4), folder, threads=8, prefetch=20), first)
  other = _batches(range(4), folder, seed=1)
  assert not np.array_equal(first[0]['labels'], other[0]['labels'])
  steps = (13, 4, 5, 9, 0)
  expected = _batches(range(14), folder)
  assert_equal(_batches(steps, folder), [expected[step] for step in steps])


def test_crops_differ_between_epochs_and_runs(tmp_path):
  noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
  for split in ('train', 'val'):
    (tmp_path / split / 'a').mkdir(parents=True)
    path = tmp_path / split / 'a' / '1.jpg'
    path.write_bytes(pictures.simplejpeg.encode_jpeg(noise))
  seen = {
    batch['inputs'].tobytes()
    for seed in (0, 1)
    for batch in _batches(range(6), tmp_path, batch_size=1, seed=seed)
  }
  assert len(seen) == 12


@pytest.mark.parametrize(
  ('processes', 'batch_size'), [(1, 8), (2, 20), (4, 20), (4, 100)]
)
def test_an_evaluation_has_every_image_once(folder, processes, batch_size):
  val = imagenet.open_images(folder).val
  known = pictures.colours(val)
  seen, labels = [], []
  for index in range(processes):
    images = _inputs(folder, batch_size, process=(index, processes))
    with contextlib.closing(images.test()) as started:
      first = next(started)  # iteration may stop early
    batches = list(images.test())
    assert len(batches) == -(-24 // batch_size)
    assert_equal(first, batches[0])
    for batch in batches:
      assert batch['inputs'].shape == (batch_size // processes, _SIZE, _SIZE, 3)
      assert batch['labels'].dtype == np.int32
      chosen = batch['is_example']
      assert chosen.dtype == np.bool_
      assert not batch['inputs'][~chosen].any()
      assert not batch['labels'][~chosen].any()
      shown = {name: values[chosen] for name, values in batch.items()}
      if chosen.any():
        seen += pictures.recognize(shown, known)
      labels += shown['labels'].tolist()
  assert sorted(seen) == list(range(24))
  assert labels == [val[index].label for index in seen]


@pytest.mark.parametrize('processes', [1, 4])
@pytest.mark.usefixtures('damaged')
def test_a_corrupt_image_displaces_no_other_image(own_folder, processes):
  known = pictures.colours(imagenet.open_images(own_folder).train)
  corrupt = 18 + 4
  assert np.isnan(known[corrupt]).all()
  given = range(12), own_folder, 100, lambda _: None
  steps = _global_batches(given[0], processes, *given[1:])
  assert_equal(steps, _batches(*given))
  for batch in steps:
    shown = pictures.recognize(batch, known)
    # 107 images for 100 positions: one that is left out is the substitute.
    assert len(set(shown)) == 100
    assert corrupt not in shown
    np.testing.assert_array_equal(batch['ids'], shown)


def test_without_other_images_one_is_repeated(own_folder, damaged, said):
  known = pictures.colours(imagenet.open_images(own_folder).train)
  images = _inputs(own_folder, say=said.append)
  assert images.skipped == 0
  for epoch in range(2):
    steps = range(9 * epoch, 9 * epoch + 9)
    with contextlib.closing(images):
      batches = [images.batch(step, 0) for step in steps]
    shown = collections.Counter(_recognized(batches, known))
    assert sorted(shown.values()) == [1] * 106 + [2]
  assert images.skipped == 1
  (line,) = said
  assert line.startswith(f'{damaged[0]} cannot be decoded, or has more pixels')


def test_an_evaluation_skips_a_corrupt_image(own_folder, damaged, said):
  images = _inputs(own_folder, 10, say=said.append)
  for _ in range(2):
    assert sum(int(batch['is_example'].sum()) for batch in images.test()) == 23
  assert images.skipped == 1
  (line,) = said
  assert line.startswith(f'{damaged[1]} cannot be decoded, or has more pixels')


@pytest.mark.usefixtures('damaged')
def test_many_corrupt_images_in_a_row_raise(own_folder, monkeypatch):
  monkeypatch.setattr(imagenet.image_inputs, '_MOST_CORRUPT_IN_A_ROW', 1)
  images = _inputs(own_folder, 108)
  with pytest.raises(ValueError, match=r'04\.JPEG and all its substitutes'):
    images.batch(0, 0)
