import itertools

import grain
import jax.numpy as jnp
import numpy as np
import pytest

from optax_sam.train.data import arrays
from tests.train.problems import assert_equal

X = np.arange(12.0).reshape(6, 2)
Y = np.array([0, 1, 2, 0, 1, 2])
PAIRS = list(zip(X, Y, strict=True))


@pytest.mark.parametrize(
  'given',
  [
    (X, Y),
    (jnp.asarray(X), Y.tolist()),
    {'x': X, 'y': Y, 'names': None},
    {'image': X, 'label': Y},
    PAIRS,
    [{'inputs': x, 'targets': y} for x, y in PAIRS],
    grain.MapDataset.source(PAIRS),
    grain.MapDataset.source(PAIRS).to_iter_dataset(),
  ],
)
def test_all_forms_give_the_same_arrays(given):
  found = arrays.dataset(given, (X[:2], Y[:2]), loss='cross_entropy')
  assert_equal(found.train, {'inputs': X, 'labels': Y})
  assert_equal(found.test, {'inputs': X[:2], 'labels': Y[:2]})
  dtypes = {name: str(x.dtype) for name, x in found.train.items()}
  assert dtypes == {'inputs': 'float32', 'labels': 'int32'}
  assert found.validation is None


@pytest.mark.parametrize(
  'given', [lambda x: x, lambda x: {'tokens': x}, list, lambda x: (x, None)]
)
def test_tokens_are_their_own_targets(given):
  tokens = np.arange(8, dtype=np.uint8).reshape(2, 4)
  found = arrays.dataset(given(tokens), tokens, loss='next_token')
  assert_equal(found.train, {'inputs': tokens, 'labels': tokens})


def test_bytes_are_scaled_and_other_integers_are_not():
  images = np.full((6, 2, 2), 51, np.uint8)
  found = arrays.dataset((images, Y), (images, Y), (images, Y))
  np.testing.assert_allclose(found.train['inputs'], 0.2)
  assert found.validation.keys() == {'inputs', 'labels'}
  found = arrays.dataset((Y, X), (Y, X), loss='mean_squared_error')
  assert found.train['inputs'].dtype == np.int32
  assert found.train['labels'].dtype == np.float32
  whole = arrays.dataset((X, Y), (X, Y), loss='mean_squared_error')
  assert whole.train['labels'].dtype == np.float32


def bad(value, at=0):
  changed = X.copy()
  changed[at, 1] = value
  return changed


@pytest.mark.parametrize(
  ('train', 'message'),
  [
    ((X, Y[:4]), 'train: inputs has 6 examples and .*targets has 4'),
    ((X[:0], Y[:0]), r'inputs has the shape \(0, 2\) and needs at least one'),
    (
      (X, Y + 0.5),
      r"targets has the dtype float64; labels are integers: .*\.astype\('int32",
    ),
    (
      (X, Y + 2**40),
      'targets contains .*; labels are integers that fit in int32',
    ),
    (
      (bad(np.nan, 3), Y),
      'inputs contains nan in example 3, and NaN or infinity in 1 of 6',
    ),
    ((bad(np.inf), Y), 'train: inputs contains inf in example 0'),
    (
      (X.astype(object), Y),
      'inputs has the dtype object, and must be numbers',
    ),
    ((X, ['a'] * 6), 'targets has the dtype <U1'),
    (([[1.0], [1.0, 2.0]], Y[:2]), 'train: inputs have different shapes'),
    (
      (X[:, :1], Y),
      r'test: inputs has .* \(2,\), .* and train: inputs has .* \(1,\)',
    ),
    (X, 'train must be a pair .* not one array'),
    ((X, Y, Y), 'train must be a pair .* not tuple'),
    ({'x': X}, 'train must have one of the keys labels, targets, y'),
    (
      {'x': X, 'inputs': X, 'y': Y},
      'one of the keys inputs, x, .* not inputs,',
    ),
    (7, 'train must be a pair .* not int'),
    ([1.0, 2.0], 'an example must be a pair .* not float'),
    (
      [(X[0], 0), (X[0, :1], 1)],
      'train: inputs have different shapes; give all examples the same',
    ),
  ],
)
def test_invalid_examples_raise(train, message):
  with pytest.raises(ValueError, match=message) as caught:
    arrays.dataset(train, (X, Y), loss='cross_entropy')
  assert '\n' not in str(caught.value)


def test_an_endless_iterable_raises(monkeypatch):
  monkeypatch.setattr(arrays, '_MOST_ITERABLE_BYTES', 1000)
  with pytest.raises(ValueError, match='or no end, and is read into memory'):
    arrays.dataset(itertools.cycle(PAIRS), (X, Y))
