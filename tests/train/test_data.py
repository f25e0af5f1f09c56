import random

import numpy as np
import pytest

from optax_sam.train.data import datasets


@pytest.fixture(scope='module')
def digits():
  return datasets.load('digits')


def test_digits_are_split_by_class(digits):
  assert digits.train['inputs'].shape == (1000, 8, 8, 1)
  assert digits.test['inputs'].shape == (797, 8, 8, 1)
  shares = [
    np.bincount(part['labels'], minlength=10) / len(part['labels'])
    for part in (digits.train, digits.test)
  ]
  np.testing.assert_allclose(*shares, atol=0.002)


def test_training_and_test_share_no_image(digits):
  train, test = (
    {image.tobytes() for image in part['inputs']}
    for part in (digits.train, digits.test)
  )
  assert not train & test


def test_inputs_are_scaled(digits):
  assert digits.train['inputs'].min() == 0
  assert digits.train['inputs'].max() == 1


def test_loading_twice_gives_the_same(digits):
  again = datasets.load('digits')
  for name in ('inputs', 'labels'):
    np.testing.assert_array_equal(again.train[name], digits.train[name])
    np.testing.assert_array_equal(again.test[name], digits.test[name])


def test_mnist1d_is_generated_without_a_network(monkeypatch):
  import socket

  def no_network(*_):
    raise AssertionError

  monkeypatch.setattr(socket.socket, 'connect', no_network)
  np.random.seed(5)
  random.seed(5)
  expected = np.random.RandomState(5).uniform()
  expected_python = random.Random(5).random()
  dataset = datasets.load('mnist1d')
  assert dataset.train['inputs'].shape == (4000, 40, 1)
  assert dataset.test['inputs'].shape == (1000, 40, 1)
  assert set(dataset.train['labels']) == set(range(10))
  # The package seeds the global generators; they are put back.
  assert np.random.uniform() == expected
  assert random.random() == expected_python


def test_label_noise_replaces_exactly_its_share(digits):
  noisy = datasets.load('digits', label_noise=0.2)
  wrong = noisy.train['labels'] != digits.train['labels']
  assert wrong.sum() == 200
  assert noisy.train['labels'].min() >= 0
  assert noisy.train['labels'].max() <= 9
  np.testing.assert_array_equal(noisy.test['labels'], digits.test['labels'])


def test_label_noise_is_symmetric(digits):
  noisy = datasets.load('digits', label_noise=1.0)
  shift = (noisy.train['labels'] - digits.train['labels']) % 10
  counts = np.bincount(shift, minlength=10)
  assert counts[0] == 0
  assert counts[1:].min() > 80  # 111 expected of each


def test_an_epoch_shows_every_example_once(digits):
  train = {**digits.train, 'number': np.arange(1000)}
  seen = np.concatenate(
    [
      datasets.batch_at(train, step, 100, seed=3)['number']
      for step in range(10)
    ]
  )
  np.testing.assert_array_equal(np.sort(seen), np.arange(1000))
  following = datasets.batch_at(train, 10, 100, seed=3)['number']
  assert not np.array_equal(following, seen[:100])


def test_a_batch_depends_on_step_and_seed_only(digits):
  def labels(step, seed):
    return datasets.batch_at(digits.train, step, 50, seed)['labels']

  first = labels(7, 0)
  labels(40, 1)
  np.testing.assert_array_equal(labels(7, 0), first)
  assert not np.array_equal(labels(7, 1), first)


def test_an_unknown_dataset_names_the_known_ones():
  with pytest.raises(ValueError, match='digits, mnist1d'):
    datasets.load('cifar')
