import os
import pickle
import struct

import numpy as np
import pytest

from optax_sam.train.data import cifar, datasets

PIXELS = 3072
RANDOM = np.random.default_rng(0)


def image(red, green, blue):
  return bytes([red] * 1024 + [green] * 1024 + [blue] * 1024)


def write_binary(directory, classes=10, **changes):
  rows = [image(10 * label, 1, 2) for label in range(3)]
  coarse = b'' if classes == 10 else b'\7'
  content = b''.join(
    coarse + bytes([label]) + row for label, row in enumerate(rows)
  )
  names = [f'data_batch_{x}.bin' for x in range(1, 6)] + ['test_batch.bin']
  if classes == 100:
    names = ['train.bin', 'test.bin']
  for name in names:
    data = changes.get(name, content)
    if data is not None:
      (directory / name).write_bytes(data)
  return directory


@pytest.mark.parametrize('classes', [10, 100])
def test_binary_files_have_labels_and_planes_of_color(tmp_path, classes):
  directory = write_binary(tmp_path, classes)
  dataset = datasets.load(f'cifar{classes}', data_dir=directory)
  copies = 5 if classes == 10 else 1
  assert dataset.classes == classes
  assert dataset.train['labels'].tolist() == [0, 1, 2] * copies
  assert dataset.train['inputs'].shape == (3 * copies, 32, 32, 3)
  first = np.asarray([20, 1, 2], np.float32) / 255
  np.testing.assert_array_equal(dataset.train['inputs'][2, 5, 9], first)
  # The directory alone says what it is.
  assert datasets.load(str(directory)).test['labels'].tolist() == [0, 1, 2]


def python_2(fields):
  """Pickles a dict as Python 2 with NumPy 1 does, opcode by opcode."""

  def text(value):
    return b'U' + bytes([len(value)]) + value

  out = b'\x80\x02}q\x00('
  for key, value in fields.items():
    out += text(key)
    if isinstance(value, list):
      out += b']('
      for one in value:
        out += text(one) if isinstance(one, bytes) else b'K' + bytes([one])
      out += b'e'
    elif isinstance(value, bytes):
      out += text(value)
    else:
      out += (
        b'cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n'
        b'K\x00\x85' + text(b'b') + b'\x87R('
        b'K\x01'
        + b''.join(b'M' + struct.pack('<H', x) for x in value.shape)
        + b'\x86cnumpy\ndtype\n'
        + text(b'u1')
        + b'K\x00K\x01\x87R('
        b'K\x03' + text(b'|') + b'NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb'
        b'\x89T' + struct.pack('<i', value.nbytes) + value.tobytes() + b'tb'
      )
  return out + b'u.'


DATA = RANDOM.integers(0, 256, (3, PIXELS), np.uint8)


def fields(classes):
  if classes == 10:
    labels = {b'labels': [2, 0, 1]}
  else:
    labels = {b'fine_labels': [2, 0, 1], b'coarse_labels': [9, 9, 9]}
  names = {b'filenames': [b'a.png'] * 3, b'batch_label': b'batch 1'}
  return {b'data': DATA} | labels | names


def pickles(classes):
  """Returns the same content by every program that may have written it."""
  content = fields(classes)
  texts = {key.decode(): value for key, value in content.items()}
  return [
    python_2(content),
    *(pickle.dumps(content, protocol) for protocol in (2, 3, 4)),
    pickle.dumps(texts, 4),
  ]


@pytest.mark.parametrize('classes', [10, 100])
@pytest.mark.parametrize('kind', range(5))
def test_python_files_are_read_whoever_wrote_them(tmp_path, classes, kind):
  content = pickles(classes)[kind]
  names = [f'data_batch_{x}' for x in range(1, 6)] + ['test_batch']
  for name in names if classes == 10 else ['train', 'test']:
    (tmp_path / name).write_bytes(content)
  dataset = datasets.load(f'cifar{classes}', data_dir=tmp_path)
  assert dataset.test['labels'].tolist() == [2, 0, 1]
  expected = DATA.reshape(3, 3, 32, 32).transpose(0, 2, 3, 1) / np.float32(255)
  np.testing.assert_array_equal(dataset.test['inputs'], expected)


def test_the_pickle_of_python_2_is_one():
  found = pickle.loads(python_2(fields(10)), encoding='bytes')
  np.testing.assert_array_equal(found[b'data'], DATA)


class Call:
  """Pickles a call."""

  def __init__(self, function, *arguments):
    self.reduced = function, arguments

  def __reduce__(self):
    return self.reduced


RAN = []
BUILD = b'\x80\x02cnumpy\ndtype\nU\x02u1\x85R'


@pytest.mark.parametrize(
  'content',
  [
    pickle.dumps(Call(os.system, 'touch evil')),
    pickle.dumps({b'data': Call(eval, 'open("evil", "w")')}),
    pickle.dumps(Call(exec, 'open("evil", "w")'), 0),
    pickle.dumps({b'data': DATA, b'labels': Call(open, 'evil', 'w')}),
    pickle.dumps(Call(getattr, RAN, 'append'), 4),
    b'cnumpy\nload\nV/etc/passwd\n\x85R.',
    b'cnumpy.core.multiarray\n__builtins__\n.',
    b'cos\nsystem\n(Vtouch evil\ntR.',
    b'(Vtouch evil\nios\nsystem\n.',
    b'\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\ntouch evil\x85R.',
    # Attributes of what may be imported
    b'\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.',
    # State in place of an array
    BUILD + b'N}U\x0c__setstate__K\x01s\x86b.',
    b'\x80\x02cnumpy\ndtype\nN}U\x08__code__K\x01s\x86b.',
    # A table of 4 billion objects
    b'\x80\x02]r\xff\xff\xff\xff.',
    b'\x80\x04\x8d' + struct.pack('<Q', 2**62) + b'.',
    b'\x80\x05\x96' + struct.pack('<Q', 2**63 - 1) + b'.',
    b'(' * 10_000 + b'.',
    b']' * 100 + b'a' * 99 + b'.',
    b'',
    python_2(fields(10))[:-100],
    pickle.dumps([1]),
    pickle.dumps(fields(10) | {b'data': np.asarray([None])}),
    pickle.dumps(fields(10) | {b'data': DATA.astype('f8')}),
    pickle.dumps(fields(10) | {b'data': DATA[:, 1:]}),
    pickle.dumps(fields(10) | {b'labels': [1, 2]}),
    pickle.dumps(fields(10) | {b'labels': [1, 2, 10]}),
    pickle.dumps(fields(10) | {b'labels': [1, 2, -1]}),
    pickle.dumps(fields(10) | {b'labels': [1, 2, b'3']}),
    pickle.dumps(fields(10) | {b'labels': [1, 2, 10**30]}),
  ],
)
def test_a_pickle_with_anything_else_is_refused_and_runs_no_code(
  content, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'data').mkdir()
  (tmp_path / 'data' / 'data_batch_1').write_bytes(content)
  with pytest.raises(ValueError, match='data_batch_1') as error:
    datasets.load('cifar10', data_dir=tmp_path / 'data')
  assert '\n' not in str(error.value)
  assert {x.name for x in tmp_path.iterdir()} == {'data'}
  # And the next file is read as before.
  images, labels = cifar._python(pickle.dumps(fields(10)), 10)
  np.testing.assert_array_equal(images, DATA)
  assert labels.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'data_batch_1.bin': None}, 'is not in .*cifar-10-binary.tar.gz'),
    (
      {'data_batch_3.bin': None},
      'data_batch_3.bin cannot be read: it is missing',
    ),
    (
      {'data_batch_3.bin': b''},
      'data_batch_3.bin cannot be read: it is truncated',
    ),
    ({'test_batch.bin': b'\0' * 3072}, 'truncated: 3072 bytes'),
    ({'test_batch.bin': b'\12' * 3073}, 'label outside of 0 to 9'),
  ],
)
def test_binary_files_that_are_not_valid_are_refused(
  changes, message, tmp_path
):
  directory = write_binary(tmp_path, **changes)
  with pytest.raises(ValueError, match=message):
    datasets.load('cifar10', data_dir=directory)
