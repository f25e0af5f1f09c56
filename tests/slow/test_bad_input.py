"""Bad input of a seeded generator: one line each, and nothing is left."""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import random
import shutil
import signal
import traceback

import numpy as np
import pytest
from PIL import Image

from optax_sam.train import cli
from optax_sam.train.comparison import runs
from optax_sam.train.config import configs, output_dir
from optax_sam.train.data import imagenet
from optax_sam.train.loop.trainer import Trainer
from tests.train.data.imagenet import pictures

pytestmark = pytest.mark.slow

SECONDS = 20
WORDS = ['sam', 'SGD', 'lion', 'digits', 'mlp', 'x.npz', 'a.py:Net', 'none']
ODD = [
  *(
    '',
    ' ',
    '-1',
    '0',
    '1',
    '2',
    '1e39',
    '1e400',
    '-0.0',
    'nan',
    'inf',
    'None',
  ),
  *(str(2**31), str(2**63), '9' * 400, '9' * 5000, '1_0', '0x1', '٣', 'True'),
  *('a\0b', 'a\x1b[31mb', 'o\udcff', 'a\\b', '\u202e', '[', '{}', '-' * 5000),
  *('/dev/zero', '/dev/null', '/', '..', '/proc/self/mem', 'x' * 5000, '%s%n'),
  *('sam.rho=1e400', 'sam.rho=-1', 'sam.rho=' + 9 * '(', 'base.b=', '=', '.='),
  *('data=0', 'data=99', 'fsdp=1,fsdp=1', 'data=' + '9' * 5000, 'here:99999'),
]
JSON = [
  None,
  True,
  [],
  [1],
  {},
  {'a': 1},
  -1,
  0,
  0.5,
  2**63,
  10**400,
  1e308,
  '',
]
COMMANDS = {
  'train': configs.TrainConfig,
  'compare': configs.CompareConfig,
  'sharpness': configs.SharpnessConfig,
  'methods': configs.MethodsConfig,
  'convert': configs.ConvertConfig,
  'report': configs.ReportConfig,
}


@pytest.fixture(autouse=True)
def checks_only(monkeypatch, tmp_path):
  """Ends a command that is valid after all, before anything is trained."""

  def end(*_, **__):
    raise SystemExit(0)

  monkeypatch.setattr(Trainer, 'start', end)
  monkeypatch.setattr(runs, 'measure', end)
  monkeypatch.chdir(tmp_path)
  former = signal.signal(signal.SIGALRM, hang)
  yield
  signal.signal(signal.SIGALRM, former)


def hang(*_):
  pytest.fail('it hangs')


def entries(directory):
  paths = map(str, directory.rglob('*'))
  return sorted(path for path in paths if '__pycache__' not in path)


def check(arguments):
  """Runs a command that ends in one line and leaves nothing, or is valid."""
  before = entries(pathlib.Path())
  out, error = io.StringIO(), io.StringIO()
  status, raised = None, ''
  signal.alarm(SECONDS)
  try:
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
      cli.main(arguments)
  except SystemExit as stop:
    status = stop.code
  except BaseException:  # noqa: BLE001 (reported with the arguments)
    raised = traceback.format_exc(limit=-3)
  finally:
    signal.alarm(0)
  shown = ascii([text[:80] for text in arguments])
  assert not raised, f'{shown}: {raised}'
  text = error.getvalue()
  if status:
    assert status == 2, shown
    assert text.startswith('optax-sam: error: '), f'{shown}: {text[:300]}'
    assert text.count('\n') == 1, f'{shown}: {text[:300]}'
    assert text[:-1].isprintable(), f'{shown}: {text[:300]}'
  assert entries(pathlib.Path()) == before, shown
  return bool(status)


def mutated(content, draw):
  """Returns JSON with one value or key replaced, removed, or cut."""
  content = json.loads(json.dumps(content))
  places = []

  def walk(node):
    for key in list(node) if isinstance(node, dict) else range(len(node)):
      places.append((node, key))
      if isinstance(node[key], dict | list):
        walk(node[key])

  walk(content)
  node, key = draw.choice(places)
  how = draw.randrange(4)
  if how == 0:
    del node[key]
  elif how == 1 and isinstance(node, dict):
    node[draw.choice(['../x', 'a/b', '\x1b[2J', 'x'])] = node.pop(key)
  else:
    node[key] = draw.choice([*JSON, *ODD])
  text = json.dumps(content)
  if draw.random() < 0.1:
    text = draw.choice(
      [text[:-9], '[' * 10**5, text.replace(':', ':' + '9' * 5000)]
    )
  return text


def damaged(content, draw):
  """Returns bytes that are cut, filled or flipped somewhere."""
  found = bytearray(content)
  place = draw.randrange(len(found))
  match draw.randrange(4):
    case 0:
      return bytes(found[:place])
    case 1:
      return bytes(draw.randrange(256) for _ in range(draw.randrange(99)))
    case 2:
      found[place : place + 16] = bytes(16)
    case _:
      found[place] ^= 1 << draw.randrange(8)
  return bytes(found)


def test_command_lines():
  draw = random.Random(0)
  refused = 0
  for _ in range(140):
    name = draw.choice([*COMMANDS, 'train', 'train', 'compare'])
    arguments = [name]
    fields = dataclasses.fields(COMMANDS[name])
    for field in draw.choices(fields, k=1 + draw.randrange(2)):
      flag = '--' + field.name.replace('_', '-')
      if field.name in ('runs', 'directory', 'names'):
        arguments.append(draw.choice(ODD))
      elif field.type is bool or field.type == 'bool':
        arguments.append(flag)
      else:
        arguments += [flag, draw.choice([*ODD, *ODD, *WORDS])]
    refused += check(arguments)
  assert refused > 100


def test_configurations():
  draw = random.Random(1)
  settings = configs.settings(configs.TrainConfig())
  for number in range(60):
    path = pathlib.Path(f'{number % 2}.json')
    path.write_text(mutated(settings, draw))
    check(['train', '--config', str(path)])
  run = pathlib.Path('run')
  run.mkdir()
  output_dir.write_config(run, 'train', settings)
  content = json.loads((run / output_dir.CONFIG).read_text())
  for _ in range(20):
    (run / output_dir.CONFIG).write_text(mutated(content, draw))
    check(['train', '--output', 'run', '--resume'])
    (run / 'metrics.jsonl').touch()
    check(['sharpness', 'run'])
    (run / 'metrics.jsonl').unlink()


IMAGES = ['train', '--model', 'own.py:Net', '--batch-size', '2']
IMAGES += ['--sharpness-examples', '2', '--dataset']
MODEL = """
import flax.linen as nn

class Net(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(6)(x.mean(axis=(1, 2)))
"""


def test_manifests_and_shards():
  draw = random.Random(2)
  folder = pictures.make_folder(pathlib.Path('folder'))
  pathlib.Path('own.py').write_text(MODEL)
  shards = pathlib.Path('shards')
  imagenet.convert(folder, shards, shards=2, threads=1, say=lambda _: None)
  small = ['imagenet', '--data-dir', 'shards', '--image-size', '8']
  valid = (shards / 'manifest.json').read_text()
  for _ in range(40):
    (shards / 'manifest.json').write_text(mutated(json.loads(valid), draw))
    check(IMAGES + small)
  (shards / 'manifest.json').write_text(valid)
  for path in sorted(shards.glob('*.array_record')):
    content = path.read_bytes()
    for _ in range(5):
      path.write_bytes(damaged(content, draw))
      check(IMAGES + small)
    path.write_bytes(content)


def test_image_files_and_arrays():
  draw = random.Random(3)
  pathlib.Path('own.py').write_text(MODEL)
  for part in ('train', 'test'):
    for name in 'ab':
      folder = pathlib.Path('folder', part, name)
      folder.mkdir(parents=True)
      for number in range(3):
        pixels = np.full((8, 8, 3), 40 * number, np.uint8)
        Image.fromarray(pixels).save(folder / f'{number}.png')
  path = pathlib.Path('folder/train/a/1.png')
  content = path.read_bytes()
  for _ in range(30):
    path.write_bytes(damaged(content, draw))
    check([*IMAGES, 'folder/'])
  path.unlink()
  os.mkfifo(path)
  check([*IMAGES, 'folder/'])
  shutil.rmtree('folder')
  file = io.BytesIO()
  x, y = np.ones((8, 4, 4, 3), np.float32), np.arange(8) % 6
  np.savez(file, x_train=x, y_train=y, x_test=x, y_test=y)
  for _ in range(30):
    pathlib.Path('x.npz').write_bytes(damaged(file.getvalue(), draw))
    check([*IMAGES, 'x.npz'])
