"""Batches: order, processes, resuming, evaluation, corrupt images."""

import collections
import itertools
import json

import numpy as np
import pytest

from optax_sam.train.data import imagenet
from tests.imagenet import pictures

_SIZE = 8
_SKIPPED = (
  '{} cannot be decoded and is skipped (1 so far); replace or remove it'
)


def _options(batch_size=12, **more):
  defaults = {'size': _SIZE, 'threads': 3, 'process_index': 0}
  defaults |= {'prefetch': 3, 'process_count': 1}
  return imagenet.InputOptions(batch_size=batch_size, **(defaults | more))


def _no_complaint(text):
  pytest.fail(text)


def _training(source, batch_size=12, seed=0, say=_no_complaint, **more):
  options = _options(batch_size, **more)
  return imagenet.TrainingInput(source, options, seed=seed, say=say)


def _batches(count, *args, **keywords):
  with _training(*args, **keywords) as training:
    return list(itertools.islice(training, count))


def _global_batches(count, processes, *args, **keywords):
  """Returns the steps of all processes, put together as their devices are."""
  parts = [
    _batches(count, *args, process_index=k, process_count=processes, **keywords)
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


@pytest.fixture(scope='module')
def train(folder):
  return imagenet.open_images(folder).train


@pytest.fixture(scope='module')
def val(folder):
  return imagenet.open_images(folder).val


@pytest.fixture
def damaged(own_folder):
  """Images of which one of each split is corrupt, and the paths of these."""
  paths = [
    own_folder / 'train' / 'n02' / 'n02_04.JPEG',
    own_folder / 'val' / 'n03' / 'n03_00.JPEG',
  ]
  for path in paths:
    pictures.truncate(path)
  return imagenet.open_images(own_folder), paths


def test_a_batch_is_bytes_and_labels(train):
  (batch,) = _batches(1, train)
  assert batch.keys() == {'inputs', 'labels', 'ids'}
  assert batch['inputs'].shape == (12, _SIZE, _SIZE, 3)
  assert batch['inputs'].dtype == np.uint8
  assert batch['labels'].shape == (12,)
  assert batch['labels'].dtype == np.int32


@pytest.mark.parametrize('processes', [1, 2, 4])
def test_an_epoch_shows_every_image_once(train, processes):
  known = pictures.colours(train)
  steps = _global_batches(18, processes, train)
  labels = np.array([train[index].label for index in range(len(train))])
  for epoch in (steps[:9], steps[9:]):
    shown = [
      index for batch in epoch for index in pictures.recognize(batch, known)
    ]
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
  # Two epochs and more; 16 does not divide the number of images.
  alone = _batches(20, train, batch_size)
  _assert_equal(_global_batches(20, processes, train, batch_size), alone)


def test_images_that_fill_no_batch_are_left_out(train):
  known = pictures.colours(train)
  training = _training(train, batch_size=50)
  assert training.steps_per_epoch == 2
  left_out = set()
  with training:
    for _ in range(3):
      shown = [
        index
        for batch in itertools.islice(training, 2)
        for index in pictures.recognize(batch, known)
      ]
      assert len(set(shown)) == 100
      left_out.add(frozenset(range(108)) - set(shown))
  assert len(left_out) == 3


def test_the_seed_decides_and_nothing_else(train):
  first = _batches(4, train)
  _assert_equal(_batches(4, train, threads=1, prefetch=1), first)
  _assert_equal(_batches(4, train, threads=8, prefetch=20), first)
  other = _batches(4, train, seed=1)
  assert any(
    not np.array_equal(a['labels'], b['labels'])
    for a, b in zip(first, other, strict=True)
  )


def test_an_image_is_cropped_anew_in_every_epoch_and_run(tmp_path):
  generator = np.random.default_rng(0)
  for split, name in itertools.product(('train', 'val'), ('a', 'b')):
    (tmp_path / split / name).mkdir(parents=True)
    noise = generator.integers(0, 256, (40, 40, 3), np.uint8)
    jpeg = pictures.simplejpeg.encode_jpeg(noise)
    (tmp_path / split / name / '1.jpg').write_bytes(jpeg)
  source = imagenet.open_images(tmp_path).train
  seen = collections.defaultdict(list)
  batches = [
    batch
    for seed in (0, 1)
    for batch in _batches(6, source, batch_size=2, seed=seed)
  ]
  for batch in batches:
    for image, label in zip(batch['inputs'], batch['labels'], strict=True):
      seen[int(label)].append(image.tobytes())
  for images in seen.values():
    assert len(set(images)) == 12


def test_folder_and_shards_give_the_same_batches(train, shards):
  _assert_equal(
    _batches(12, imagenet.open_images(shards).train), _batches(12, train)
  )


@pytest.mark.parametrize('step', [0, 1, 4, 9, 13])
def test_a_run_goes_on_where_it_was(train, step):
  all_batches = _batches(16, train)
  with _training(train) as training:
    for _ in range(step):
      next(training)
    state = json.loads(json.dumps(training.get_state()))
    # The one that is left goes on as if nothing had been asked.
    _assert_equal(list(itertools.islice(training, 2)), all_batches[step:][:2])
  assert state['step'] == step
  with _training(train) as resumed:
    next(resumed)
    resumed.set_state(state)
    assert resumed.get_state() == state
    _assert_equal(
      list(itertools.islice(resumed, 16 - step)), all_batches[step:]
    )


def test_a_run_goes_on_with_more_processes(train):
  with _training(train) as training:
    alone = list(itertools.islice(training, 10))
    next(training)
    state = training.get_state() | {'step': 7}
  for index in range(2):
    with _training(train, process_index=index, process_count=2) as half:
      half.set_state(state)
      for batch in alone[7:]:
        part = {name: np.split(of, 2)[index] for name, of in batch.items()}
        _assert_equal([next(half)], [part])


@pytest.mark.parametrize(
  ('change', 'complaint'),
  [
    ({'seed': 1}, 'seed is 0 and was 1'),
    ({'batch_size': 6}, 'batch_size is 12 and was 6'),
    ({'examples': 109}, 'examples is 108 and was 109'),
  ],
)
def test_another_order_is_not_gone_on_with(train, change, complaint):
  with _training(train) as training:
    state = training.get_state()
    with pytest.raises(ValueError, match=f'cannot go on: {complaint}; use the'):
      training.set_state(state | change)
    assert training.get_state() == state


@pytest.mark.parametrize('processes', [1, 2, 4])
@pytest.mark.parametrize('batch_size', [8, 20, 100])
def test_an_evaluation_sees_every_image_once(val, processes, batch_size):
  known = pictures.colours(val)
  seen, labels = [], []
  for index in range(processes):
    options = _options(batch_size, process_index=index, process_count=processes)
    evaluation = imagenet.EvaluationInput(val, options, say=_no_complaint)
    assert len(evaluation) == -(-24 // batch_size)
    batches = list(evaluation)
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


def test_an_evaluation_may_be_left_early(val):
  evaluation = imagenet.EvaluationInput(val, _options(4), say=_no_complaint)
  first = next(iter(evaluation))
  _assert_equal([next(iter(evaluation))], [first])


@pytest.mark.parametrize('processes', [1, 2, 4])
def test_a_corrupt_image_costs_no_other_its_turn(damaged, processes):
  images, _ = damaged
  known = pictures.colours(images.train)
  corrupt = 18 + 4
  assert np.isnan(known[corrupt]).all()
  said = []
  steps = _global_batches(12, processes, images.train, 25 * 4, say=said.append)
  steps_alone = _batches(12, images.train, 25 * 4, say=lambda _: None)
  _assert_equal(steps, steps_alone)
  for batch in steps:
    shown = pictures.recognize(batch, known)
    # 107 images for 100 places: one that would be left out stands in.
    assert len(set(shown)) == 100
    assert corrupt not in shown
    np.testing.assert_array_equal(batch['ids'], shown)


def test_without_spare_images_one_is_shown_twice(damaged):
  images, _ = damaged
  known = pictures.colours(images.train)
  steps = _batches(18, images.train, say=lambda _: None)
  for epoch in (steps[:9], steps[9:]):
    shown = collections.Counter(
      index for batch in epoch for index in pictures.recognize(batch, known)
    )
    assert len(shown) == 107
    assert sorted(shown.values()) == [1] * 106 + [2]


def test_a_corrupt_image_is_counted_and_named_once(damaged, said):
  images, (path, _) = damaged
  with _training(images.train, say=said.append) as training:
    assert training.skipped == 0
    for _ in range(27):
      next(training)
    assert training.skipped == 1
  assert said == [
    f'{path} cannot be decoded and is skipped (1 so far); replace or remove it'
  ]


def test_one_process_alone_meets_a_corrupt_image(damaged):
  images, _ = damaged
  found = []
  for index in range(2):
    with _training(
      images.train,
      say=lambda _: None,
      process_index=index,
      process_count=2,
    ) as training:
      for _ in range(9):
        next(training)
      found.append(training.skipped)
  assert sorted(found) == [0, 1]


def test_an_evaluation_leaves_a_corrupt_image_out(damaged, said):
  images, (_, path) = damaged
  evaluation = imagenet.EvaluationInput(
    images.val, _options(10), say=said.append
  )
  for _ in range(2):
    assert sum(int(batch['is_example'].sum()) for batch in evaluation) == 23
  assert evaluation.skipped == 1
  assert said == [
    f'{path} cannot be decoded and is skipped (1 so far); replace or remove it'
  ]


def test_corrupt_images_alone_are_an_error(own_folder):
  for path in own_folder.glob('train/*/*'):
    path.write_bytes(b'no image')
  train = imagenet.open_images(own_folder).train
  with (
    _training(train, say=lambda _: None) as training,
    pytest.raises(ValueError, match='and all images tried in its place cannot'),
  ):
    next(training)


def test_a_file_that_goes_away_ends_the_run(own_folder):
  train = imagenet.open_images(own_folder).train
  next(own_folder.glob('train/n01/n01_00.*')).unlink()
  with pytest.raises(ValueError, match=r'n01_00.JPEG cannot be read: No such'):
    _batches(9, train)


@pytest.mark.parametrize(
  ('options', 'complaint'),
  [
    ({'batch_size': 0}, 'batch_size must be at least 1, not 0'),
    ({'size': 0}, 'size must be at least 1, not 0'),
    ({'threads': 0}, 'threads must be at least 1, not 0'),
    ({'prefetch': 0}, 'prefetch must be at least 1, not 0'),
    ({'process_index': 1}, 'process_index must be from 0 to 0, not 1'),
    (
      {'process_count': 5},
      'batch_size must be a multiple of the number of processes, 5, not 12',
    ),
  ],
)
def test_wrong_options_are_one_line(train, options, complaint):
  for make in (
    lambda options: imagenet.TrainingInput(train, options, seed=0, say=print),
    lambda options: imagenet.EvaluationInput(train, options, say=print),
  ):
    with pytest.raises(ValueError, match=complaint):
      make(_options(**options))


def test_a_batch_must_not_exceed_the_images(train):
  with pytest.raises(
    ValueError, match='at most the number of training images, 108, not 109'
  ):
    _training(train, batch_size=109)


def test_the_seed_must_not_be_negative(train):
  with pytest.raises(ValueError, match='seed must be at least 0, not -1'):
    _training(train, seed=-1)


def test_the_process_is_that_of_jax():
  options = imagenet.InputOptions(batch_size=4)
  assert options.process() == (0, 1)
