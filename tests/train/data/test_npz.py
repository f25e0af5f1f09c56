import io
import struct
import zipfile

import numpy as np
import pytest

from optax_sam.train.data import arrays, datasets

RANDOM = np.random.default_rng(0)
ARRAYS = {
  'x_train': RANDOM.normal(size=(8, 3)),
  'y_train': np.asarray([0, 1, 2, 0, 1, 2, 0, 1]),
  'x_test': RANDOM.normal(size=(2, 3)),
  'y_test': np.asarray([2, 0]),
}


@pytest.fixture
def save(tmp_path):
  def save(**changes):
    path = tmp_path / 'mine.npz'
    arrays = {k: v for k, v in (ARRAYS | changes).items() if v is not None}
    np.savez(path, **arrays)
    return str(path)

  return save


def test_arrays_become_float32_and_int32(save):
  validation = {'x_val': np.ones((1, 3)), 'y_val': np.asarray([1])}
  dataset = datasets.load(save(**validation))
  assert dataset.classes == 3
  expected = ARRAYS['x_train'].astype(np.float32)
  np.testing.assert_array_equal(dataset.train['inputs'], expected)
  assert dataset.train['inputs'].dtype == np.float32
  assert dataset.train['labels'].dtype == np.int32
  assert dataset.test['labels'].tolist() == [2, 0]
  assert dataset.validation is not None
  assert dataset.validation['labels'].tolist() == [1]
  assert datasets.load(save()).validation is None


@pytest.mark.parametrize(
  ('shape', 'expected'), [((4, 5), (4, 5, 1)), ((4, 5, 3), (4, 5, 3))]
)
def test_bytes_are_pixels(save, shape, expected):
  images = RANDOM.integers(0, 256, (8, *shape), np.uint8)
  path = save(x_train=images, x_test=images[:2])
  inputs = datasets.load(path).train['inputs']
  assert inputs.shape == (8, *expected)
  np.testing.assert_allclose(inputs.ravel() * 255, images.ravel(), rtol=1e-6)


@pytest.mark.parametrize('shape', [(8,), (8, 2)])
def test_numbers_are_targets_of_a_regression(save, shape):
  targets = RANDOM.normal(size=shape)
  path = save(y_train=targets, y_test=targets[:2])
  dataset = datasets.load(path, loss='mean_squared_error')
  assert dataset.train['labels'].shape == (8, dataset.classes)
  np.testing.assert_allclose(
    dataset.train['labels'].ravel(), targets.ravel(), rtol=1e-6
  )
  train, held_out = datasets.hold_out(dataset.train, 0.25, 0)
  assert (len(train['labels']), len(held_out['labels'])) == (6, 2)


def test_tokens_are_their_own_targets(save):
  tokens = RANDOM.integers(0, 7, (8, 5))
  tokens[0, 0] = 6
  changes = dict.fromkeys(('y_train', 'y_test'))
  path = save(x_train=tokens, x_test=tokens[:2], **changes)
  dataset = datasets.load(path, loss='next_token')
  assert dataset.classes == 7
  for name in ('inputs', 'labels'):
    np.testing.assert_array_equal(dataset.train[name], tokens)
    assert dataset.train[name].dtype == np.int32


@pytest.mark.parametrize('count', [3, 5, 7, 30, 59])
def test_the_first_training_examples_have_the_fractions_of_all(save, count):
  sizes = {0: 36, 1: 18, 2: 6}
  labels = RANDOM.permutation(np.repeat(list(sizes), list(sizes.values())))
  inputs = np.arange(60.0)[:, None] * [1, 1, 1]
  path = save(x_train=inputs, y_train=labels)
  train = datasets.load(path, train_examples=count).train
  assert len(train['labels']) == count
  chosen = train['inputs'][:, 0].astype(int)
  np.testing.assert_array_equal(chosen, np.sort(chosen))
  for label, size in sizes.items():
    first = np.flatnonzero(labels == label)
    found = chosen[train['labels'] == label]
    np.testing.assert_array_equal(found, first[: len(found)])
    assert len(found) >= 1
    assert abs(len(found) - count * size / 60) <= 1
  for wrong in (2, 61):
    with pytest.raises(ValueError, match='--train-examples must be at'):
      datasets.load(path, train_examples=wrong)


NAN = np.where(np.arange(24).reshape(8, 3) == 7, np.nan, 0)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'x_test': None, 'y_train': None}, 'has no y_train; it has'),
    ({'x_val': np.ones((1, 3))}, 'has no y_val'),
    ({'x_train': NAN}, 'train: inputs contains nan in example 2'),
    ({'x_train': np.full((8, 3), 1e300)}, 'train: inputs contains inf'),
    (
      {'x_train': np.full((8, 3), None)},
      'x_train cannot be read: Object arrays',
    ),
    ({'y_test': np.asarray([None, 1])}, 'y_test cannot be read: Object arrays'),
    ({'x_train': np.full((8, 3), 'a')}, 'inputs has the dtype <U1'),
    ({'x_train': np.ones((8, 3), complex)}, 'dtype complex128'),
    ({'x_train': np.ones(8)}, r'need two: write x\[:, None\]'),
    ({'x_train': np.ones((8, 0))}, 'at least one example'),
    ({'x_train': np.ones((7, 3))}, 'has 7 examples and targets has 8'),
    ({'x_test': np.ones((2, 4))}, r'\(4,\), .* and .*train.* \(3,\)'),
    ({'x_test': np.ones((2, 3), 'u1')}, 'uint8, and .*train.* float64; give'),
    ({'y_train': np.ones(8)}, r"labels are integers: targets.astype\('int"),
    ({'y_train': np.eye(8, dtype=int)}, r'argmax\(1\) of them if they are one'),
    ({'y_train': np.arange(8) - 1}, 'from -1 to 6; number at least two'),
    ({'y_train': np.arange(8) + 1}, 'from 1 to 8; number at least two'),
    ({'y_train': np.arange(8) * 9}, 'from 0 to 63; number at least two'),
    ({'y_train': np.ones(8, int)}, 'from 1 to 1; number at least two'),
  ],
)
def test_arrays_that_are_not_valid_are_refused(save, changes, message):
  with pytest.raises(ValueError, match=message) as error:
    datasets.load(save(**changes))
  assert '\n' not in str(error.value)
  assert 'mine.npz' in str(error.value)


NO_TARGETS = {'y_train': None, 'y_test': None}


@pytest.mark.parametrize(
  ('changes', 'loss', 'message'),
  [
    ({'y_train': NAN[:, 1]}, 'mean_squared_error', 'targets contains nan'),
    ({}, 'next_token', 'mine.npz: it has y_train, but with'),
    (NO_TARGETS, 'next_token', 'tokens are integers: inputs.astype'),
  ],
)
def test_arrays_that_do_not_fit_the_loss_are_refused(
  save, changes, loss, message
):
  with pytest.raises(ValueError, match=message):
    datasets.load(save(**changes), loss=loss)


def npy(header, content=b''):
  text = header.encode()
  return b'\x93NUMPY\1\0' + struct.pack('<H', len(text)) + text + content


HEADER = "{'descr': '%s', 'fortran_order': False, 'shape': %s, }\n"


@pytest.mark.parametrize(
  ('member', 'message'),
  [
    (b'', 'train: inputs has the dtype .*S1, and must be numbers'),
    (b'no array', 'train: inputs has the dtype .*S8, and must be numbers'),
    (npy('{' * 200), 'x_train cannot be read'),
    (npy(HEADER % ('<f4', '(8, 3)'), bytes(50)), 'x_train cannot be read'),
    (npy(HEADER % ('<f4', '(9999999, 999999)')), 'x_train cannot be read'),
    (npy(HEADER % ('<f4', '(-8, 3)')), 'x_train cannot be read'),
    (npy(HEADER % ('|V9999999999', '(8, 3)')), 'x_train'),
    (npy(HEADER % ('|O', '(8, 3)'), b'cos\nsystem\n.'), 'Object arrays'),
    (npy(HEADER % ("[('a', '<f4')]", '(8,)')), 'x_train cannot'),
  ],
)
def test_damaged_members_are_refused(tmp_path, member, message):
  path = tmp_path / 'mine.npz'
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    for key, array in ARRAYS.items():
      plain = io.BytesIO()
      np.save(plain, array)
      content = member if key == 'x_train' else plain.getvalue()
      archive.writestr(f'{key}.npy', content)
  with pytest.raises(ValueError, match=message) as error:
    datasets.load(str(path))
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('content', [b'', b'PK\3\4 nothing', b'x' * 100])
def test_a_file_that_is_no_archive_is_refused(tmp_path, content):
  path = tmp_path / 'mine.npz'
  path.write_bytes(content)
  with pytest.raises(
    ValueError, match=r'mine\.npz: it cannot be read: File is not a zip'
  ):
    datasets.load(str(path))


def test_large_arrays_are_refused_before_they_are_read(save, monkeypatch):
  monkeypatch.setattr(arrays, '_MOST_BYTES', 128)
  with pytest.raises(ValueError, match=r'x_train .* is too large'):
    datasets.load(save())
