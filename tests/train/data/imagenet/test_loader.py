"""Batches: order, processes, resuming, evaluation, corrupt images."""

import collections
import contextlib
import itertools

import numpy as np
import pytest

from optax_sam.train.data import imagenet
from tests.train.data.imagenet import pictures

_SIZE = 8


def _options(batch_size=12, **more):
  defaults = {'size': _SIZE, 'threads': 3, 'prefetch': 3, 'process': (0, 1)}
  return imagenet.InputOptions(batch_size=batch_size, **(defaults | more))


def _training(source, batch_size=12, seed=0, say=pytest.fail, **more):
  options = _options(batch_size, **more)
  return imagenet.training_input(source, options, seed=seed, say=say)


def _taken(training, count, start=0):
  with contextlib.closing(training.start(start)) as batches:
    return list(itertools.islice(batches, count))


def _batches(count, *args, **keywords):
  return _taken(_training(*args, **keywords), count)


def _global_batches(count, processes, *args, **keywords):
  """Returns global batches: the rows of all processes, concatenated."""
  parts = [
    _batches(count, *args, process=(k, processes), **keywords)
    for k in range(processes)
  ]
  return [
    {name: np.concatenate([part[name] for part in step]) for name in step[0]}
    for step in zip(*parts, strict=True)
  ]


def _assert_equal(batches, others):
  for batch, other in zip(batches, others, strict=True):
    assert batch.keys() == other.keys()
    for name, values in batch.items():
      np.testing.assert_array_equal(values, other[name])


def _recognized(batches, known):
  """Returns the indices of the images of some batches."""
  return [k for batch in batches for k in pictures.recognize(batch, known)]


@pytest.fixture(scope='module')
def train(folder):
  return imagenet.open_images(folder).train


@pytest.fixture
def damaged(own_folder):
  """Images with one corrupt image in each split, and their paths."""
  paths = [
    own_folder / 'train' / 'n02' / 'n02_04.JPEG',
    own_folder / 'val' / 'n03' / 'n03_00.JPEG',
  ]
  for path in paths:
    pictures.truncate(path)
  return imagenet.open_images(own_folder), paths


def test_an_epoch_shows_every_image_once(train):
  known = pictures.colours(train)
  steps = _batches(18, train)
  assert steps[0]['inputs'].shape == (12, _SIZE, _SIZE, 3)
  assert steps[0]['inputs'].dtype == np.uint8
  assert steps[0]['labels'].dtype == np.int32
  labels = np.array([train[index].label for index in range(len(train))])
  for epoch in (steps[:9], steps[9:]):
    shown = _recognized(epoch, known)
    assert sorted(shown) == list(range(len(train)))
    given = np.concatenate([batch['labels'] for batch in epoch])
    np.testing.assert_array_equal(given, labels[shown])
    ids = np.concatenate([batch['ids'] for batch in epoch])
    np.testing.assert_array_equal(ids, shown)


@pytest.mark.parametrize('processes', [2, 4])
@pytest.mark.parametrize('batch_size', [12, 16])
def test_a_step_is_the_same_for_any_number_of_processes(
  train, processes, batch_size
):
  # More than two epochs; 16 does not divide the number of images.
  alone = _batches(20, train, batch_size)
  _assert_equal(_global_batches(20, processes, train, batch_size), alone)


def test_batches_depend_only_on_the_seed(train):
  first = _batches(4, train)
  _assert_equal(_batches(4, train, threads=1, prefetch=1), first)
  _assert_equal(_batches(4, train, threads=8, prefetch=20), first)
  other = _batches(4, train, seed=1)
  assert not np.array_equal(first[0]['labels'], other[0]['labels'])


def test_crops_differ_between_epochs_and_runs(tmp_path):
  noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
  for split in ('train', 'val'):
    (tmp_path / split / 'a').mkdir(parents=True)
    path = tmp_path / split / 'a' / '1.jpg'
    path.write_bytes(pictures.simplejpeg.encode_jpeg(noise))
  source = imagenet.open_images(tmp_path).train
  seen = {
    batch['inputs'].tobytes()
    for seed in (0, 1)
    for batch in _batches(6, source, batch_size=1, seed=seed)
  }
  assert len(seen) == 12


@pytest.mark.parametrize('step', [0, 4, 9, 13])
def test_batches_can_be_read_from_any_step_on(train, step):
  training = _training(train)
  all_batches = _taken(training, 16)
  _assert_equal(_taken(training, 16 - step, step), all_batches[step:])


@pytest.mark.parametrize(
  ('processes', 'batch_size'), [(1, 8), (2, 20), (4, 20), (4, 100)]
)
def test_an_evaluation_has_every_image_once(folder, processes, batch_size):
  val = imagenet.open_images(folder).val
  known = pictures.colours(val)
  seen, labels = [], []
  for index in range(processes):
    options = _options(batch_size, process=(index, processes))
    evaluation = imagenet.evaluation_input(val, options, say=pytest.fail)
    assert len(evaluation) == -(-24 // batch_size)
    first = next(iter(evaluation))  # iteration may stop early
    batches = list(evaluation)
    _assert_equal([first], batches[:1])
    assert len(batches) == len(evaluation)
    _assert_equal(list(evaluation), batches)
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
def test_a_corrupt_image_displaces_no_other_image(damaged, processes):
  images, _ = damaged
  known = pictures.colours(images.train)
  corrupt = 18 + 4
  assert np.isnan(known[corrupt]).all()
  steps = _global_batches(12, processes, images.train, 100, say=lambda _: None)
  _assert_equal(steps, _batches(12, images.train, 100, say=lambda _: None))
  for batch in steps:
    shown = pictures.recognize(batch, known)
    # 107 images for 100 positions: one that is left out is the substitute.
    assert len(set(shown)) == 100
    assert corrupt not in shown
    np.testing.assert_array_equal(batch['ids'], shown)


def test_without_spare_images_one_is_repeated(damaged, said):
  images, (path, _) = damaged
  known = pictures.colours(images.train)
  training = _training(images.train, say=said.append)
  assert training.skipped == 0
  for epoch in range(2):
    shown = collections.Counter(
      _recognized(_taken(training, 9, 9 * epoch), known)
    )
    assert sorted(shown.values()) == [1] * 106 + [2]
  assert training.skipped == 1
  (line,) = said
  assert line.startswith(f'{path} cannot be decoded, or has more pixels')


def test_an_evaluation_skips_a_corrupt_image(damaged, said):
  images, (_, path) = damaged
  evaluation = imagenet.evaluation_input(
    images.val, _options(10), say=said.append
  )
  for _ in range(2):
    assert sum(int(batch['is_example'].sum()) for batch in evaluation) == 23
  assert evaluation.skipped == 1
  (line,) = said
  assert line.startswith(f'{path} cannot be decoded, or has more pixels')


def test_only_corrupt_images_raise(own_folder):
  for path in own_folder.glob('train/*/*'):
    path.write_bytes(b'no image')
  train = imagenet.open_images(own_folder).train
  with pytest.raises(ValueError, match='and all its substitutes cannot'):
    _batches(1, train, say=lambda _: None)
