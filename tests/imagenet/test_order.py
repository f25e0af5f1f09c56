"""The order of training, without any images."""

import itertools

import numpy as np
import pytest

from optax_sam.train.data.imagenet.order import TrainingOrder, permutation


def _shown(order, epoch):
  """Returns what an epoch shows, step by step."""
  steps, size = order.steps_per_epoch, order.batch_size
  positions = np.arange(steps * size) + epoch * steps * size
  chosen = [next(order.at(int(position))) for position in positions]
  return np.reshape(chosen, (steps, size))


def test_an_order_has_everything_once_and_never_changes():
  order = permutation(1000, 3)
  assert sorted(order) == list(range(1000))
  # Conversions and runs are continued with later versions of NumPy.
  assert order[:8].tolist() == [186, 20, 616, 472, 320, 734, 838, 536]
  assert permutation(1000, 3, 1).tolist() != order.tolist()


@pytest.mark.parametrize('examples', [48, 50, 55])
def test_an_epoch_shows_every_image_at_most_once(examples):
  order = TrainingOrder(examples, batch_size=8, seed=1)
  assert order.steps_per_epoch == 6
  epochs = [_shown(order, epoch) for epoch in range(3)]
  for shown in epochs:
    assert len(np.unique(shown)) == 48
  assert not np.array_equal(epochs[0], epochs[1])


def test_the_images_left_out_are_others_each_time():
  order = TrainingOrder(50, batch_size=8, seed=1)
  left_out = [
    frozenset(range(50)) - set(_shown(order, epoch).flat) for epoch in range(6)
  ]
  assert len(set(left_out)) == 6


def test_the_seed_decides():
  first, again, other = (
    _shown(TrainingOrder(50, 8, seed), 0) for seed in (1, 1, 2)
  )
  np.testing.assert_array_equal(first, again)
  assert not np.array_equal(first, other)


@pytest.mark.parametrize('examples', [8, 11])
def test_images_left_out_stand_in_first(examples):
  order = TrainingOrder(examples, batch_size=4, seed=0)
  shown = set(_shown(order, 1).flat)
  for position in range(8, 16):
    candidates = list(order.at(position))
    assert sorted(candidates) == list(range(examples))
    spare = examples - 8
    assert set(candidates[1 : 1 + spare]) == set(range(examples)) - shown


def test_positions_begin_with_different_stand_ins():
  order = TrainingOrder(11, batch_size=8, seed=0)
  second = [
    next(itertools.islice(order.at(position), 1, None)) for position in range(3)
  ]
  assert len(set(second)) == 3
