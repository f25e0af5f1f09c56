import socket

import jax
import numpy as np
import pytest

from optax_sam.train.data import datasets, inputs
from tests.train.problems import assert_equal


@pytest.fixture(scope='module')
def digits():
  return datasets.load('digits')


def test_digits_are_scaled_and_split_by_class(digits):
  assert digits.train['inputs'].shape == (1000, 8, 8, 1)
  assert digits.test['inputs'].shape == (797, 8, 8, 1)
  assert digits.train['inputs'].min() == 0
  assert digits.train['inputs'].max() == 1
  fractions = [
    np.bincount(part['labels'], minlength=10) / len(part['labels'])
    for part in (digits.train, digits.test)
  ]
  np.testing.assert_allclose(*fractions, atol=0.002)
  train, test = (
    {image.tobytes() for image in part['inputs']}
    for part in (digits.train, digits.test)
  )
  assert not train & test


def test_mnist1d_is_generated_without_a_network(monkeypatch):
  def no_network(*_):
    raise AssertionError

  monkeypatch.setattr(socket.socket, 'connect', no_network)
  dataset = datasets.load('mnist1d')
  assert dataset.train['inputs'].shape == (4000, 40, 1)
  assert dataset.test['inputs'].shape == (1000, 40, 1)
  assert set(dataset.train['labels']) == set(range(10))


@pytest.mark.parametrize(('fraction', 'least'), [(0.2, 8), (1.0, 80)])
def test_label_noise_replaces_exactly_its_fraction_by_other_labels(
  digits, fraction, least
):
  noisy = datasets.load('digits', label_noise=fraction)
  shift = (noisy.train['labels'] - digits.train['labels']) % 10
  counts = np.bincount(shift, minlength=10)
  assert counts[0] == 1000 * (1 - fraction)
  assert counts[1:].min() > least  # 22 and 111 expected of each
  assert set(noisy.train['labels']) == set(range(10))
  np.testing.assert_array_equal(noisy.test['labels'], digits.test['labels'])


CLASSES = 5
NUMBERED = datasets.Dataset(
  # Every example is its index.
  train={'inputs': np.arange(203), 'labels': np.arange(203) % CLASSES},
  test={'inputs': np.arange(7), 'labels': np.arange(7) % CLASSES},
  classes=CLASSES,
)


def joined(batches):
  return jax.tree.map(lambda *parts: np.concatenate(parts), *batches)


def test_an_epoch_shows_every_example_once():
  examples = inputs.InMemory(NUMBERED, 29, (0, 1))  # 7 batches

  def numbers(step, seed=3):
    return examples.batch(step, seed)['inputs']

  seen = np.concatenate([numbers(step) for step in range(7)])
  np.testing.assert_array_equal(np.sort(seen), np.arange(203))
  assert not np.array_equal(numbers(7), seen[:29])
  # A batch depends on step and seed only.
  np.testing.assert_array_equal(numbers(0), seen[:29])
  assert not np.array_equal(numbers(0, seed=1), seen[:29])


@pytest.mark.parametrize('fraction', [0.1, 0.25, 0.5])
def test_held_out_examples_are_in_no_batch(fraction):
  examples = inputs.InMemory(NUMBERED, 9, (0, 1)).with_held_out(fraction)
  chosen = {}
  for seed in (3, 4, 3):
    held_out = examples.held_out(seed)
    assert_equal(chosen.setdefault(seed, held_out), held_out)
    steps = 3 * inputs.steps_per_epoch(examples)
    shown = joined([examples.batch(step, seed) for step in range(steps)])
    assert not set(shown['inputs']) & set(held_out['inputs'])
    # Examples that an epoch leaves out are in another epoch.
    left = len(NUMBERED.train['labels']) - len(held_out['labels'])
    assert len(set(shown['inputs'])) > 0.95 * left
    assert examples.train_examples == left
    count = np.bincount(held_out['labels'], minlength=CLASSES)
    whole = np.bincount(NUMBERED.train['labels'])
    np.testing.assert_array_equal(count, np.rint(fraction * whole))
  assert set(chosen[3]['inputs']) != set(chosen[4]['inputs'])


@pytest.mark.parametrize('fraction', [0.0, 0.1])
def test_each_process_has_its_rows_of_a_batch(fraction):
  whole, *halves = (
    inputs.InMemory(NUMBERED, 10, process).with_held_out(fraction)
    for process in ((0, 1), (0, 2), (1, 2))
  )
  for step in (0, 17, 40):
    parts = [half.batch(step, 5, ids=True) for half in halves]
    assert_equal(joined(parts), whole.batch(step, 5, ids=True))
  if fraction:
    assert_equal(*(half.held_out(5) for half in halves))


def test_ids_are_those_of_the_examples():
  examples = inputs.InMemory(NUMBERED, 9, (0, 1))
  for step in range(3):
    batch, plain = examples.batch(step, 0, ids=True), examples.batch(step, 0)
    assert plain.keys() == {'inputs', 'labels'}
    ids = batch.pop('ids')
    assert ids.dtype == np.int32
    assert_equal(batch, plain)
    np.testing.assert_array_equal(
      NUMBERED.train['inputs'][ids], plain['inputs']
    )
