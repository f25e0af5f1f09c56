import re
import shlex
import shutil

import numpy as np
import pytest

import optax_sam
from optax_sam.train.commands import compare
from optax_sam.train.config import arguments, checks
from optax_sam.train.data import imagenet
from optax_sam.train.loop.trainer import Trainer
from tests.train.data.imagenet import pictures
from tests.train.runs import call, refused

ONE_LINE = [
  # Found by the parser
  ([], 'compare, train, sharpness'),
  (['compair'], 'compare, train, sharpness'),
  (['compare', '--stepz', '3'], '--stepz'),
  (['compare', '--step', '3'], '--steps'),
  (['compare', '--steps', 'many'], 'many'),
  (['compare', '--lr'], '--lr'),
  (['convert', '--source', 'x'], '--output'),
  # Names
  (['compare', '--model', 'resnet'], 'did you mean resnet50 or resnet18? choo'),
  (['compare', '-m', 'sam,asm'], "--methods 'asm' is unknown; did you mean"),
  (['compare', '-m', 'sam', 'adam'], 'write --base adam'),
  (['compare', '--dataset', 'digit'], 'did you mean digits?'),
  (['compare', '--dataset', 'imagenet'], 'choose one of digits, mnist1d'),
  (
    ['compare', '--dataset', 'none.npz'],
    '--dataset none.npz: it does not exist',
  ),
  (['compare', '--base', 'adan2'], 'did you mean adan'),
  (['compare', '--base', 'lbfgs'], 'choose one of sgd, adamw, adabelief'),
  (['compare', '--loss', 'mse'], 'choose one of cross_entropy, mean_squared'),
  (['compare', '--metric', 'acuracy'], 'did you mean accuracy'),
  (['train', '--method', 'adam'], 'write --base adam'),
  (['train', '-m', 'SMA'], 'did you mean'),
  (['train', '--method', 'MSAM'], 'may mean m_sam or momentum_sam'),
  (['methods', 'nothing'], '`optax-sam methods` lists all'),
  # Values
  (['compare', '--steps', '0'], '--steps must be at least 1'),
  (['compare', '--steps', '9' * 400], 'of 400 characters'),
  (['compare', '--rho', '0'], '--rho 0 perturbs nothing'),
  (['compare', '--rho', '1e39'], '--rho must be at most 3.4e+38, not 1e+39'),
  (['compare', '--label-noise', '1'], '--label-noise must be below 1, not 1.0'),
  (['train', '--seed', str(2**63)], '--seed must be at most'),
  (['train', '--prefetch', '1000000000000'], '--prefetch must be at most 4096'),
  (
    ['compare', '--resize', '8'],
    '--dataset digits: --resize is for a folder of images only',
  ),
  (['compare', '--data-dir', 'x'], '--data-dir is for fashion_mnist, cifar10'),
  (['compare', '--dataset', 'cifar10', '--data-dir', 'x'], 'cifar-10-binary'),
  (['compare', '--train-examples', '1001'], 'must be at most 1000'),
  (['compare', '--loss', 'next_token'], '--loss next_token is not for --datas'),
  (
    ['compare', '--loss', 'next_token', '--label-noise', '0.1'],
    '--label-noise needs classes, not --loss next_token',
  ),
  # Settings
  (['compare', '--set', 'sam.radius=1'], 'choose one of rho'),
  (['compare', '--set', 'sam.rho'], 'must read NAME.SETTING=VALUE'),
  (['compare', '--set', 'sam.rho=1e400'], 'rho must be a finite number'),
  (['compare', '--set', f'sam.rho={"9" * 150}'], 'must be a finite number'),
  (['compare', '--set', 'sam.rho=' + 5000 * '~'], 'must read NAME.SETTING'),
  (['compare', '--set', 'base.momentun=1'], 'did you mean momentum?'),
  (['compare', '--set', 'sgd.momentum=1'], 'sam, asam, friendly_sam, ae_sam'),
  # Models and other files
  (['compare', '--model', 'none.py:Net'], 'there is no file none.py'),
  (['compare', '--model', 'not_there:Net'], 'there is no module not_there'),
  (['compare', '--model', 'json:Net'], 'json has no Net'),
  (['train', '--config', 'none.json'], 'none.json cannot be read'),
  (['train', '--model', 'vit_s16'], 'patch must divide the sides'),
  # A directory where not even root may write
  (['compare', '--output', '/proc/optax-sam/out'], 'cannot write'),
]


@pytest.mark.parametrize(('flags', 'named'), ONE_LINE)
def test_invalid_input_is_reported_in_one_line_with_status_2(
  flags, named, capsys, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(Trainer, 'run', None)
  error = refused(capsys, *flags)
  assert named in error
  assert '---' not in error
  assert len(error) < 500
  assert not list(tmp_path.iterdir())


MODELS = """
import flax.linen as nn
import jax.numpy as jnp

class Few(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(1)(x)

class Flat(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(3)(x).sum(axis=1)

class Deep(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(3)(x @ jnp.ones((7, 7)))
"""
X, Y = np.ones((8, 2), 'float32'), np.asarray([0, 1, 2, 0, 1, 2, 0, 1])


@pytest.mark.parametrize('command', ['compare', 'train'])
@pytest.mark.parametrize(
  ('changes', 'model', 'named'),
  [
    ({}, 'few', 'few'),
    ({}, 'own.py:Few', 'has the label 2, and the model has 1 outputs'),
    ({}, 'own.py:Flat', 'model returns shape ()'),
    ({}, 'own.py:Deep', 'Deep fails on inputs of shape (1, 2)'),
    ({}, 'cnn', "model 'cnn' takes images or signals"),
    ({}, 'resnet18', "model 'resnet18' takes images, channels last"),
    ({'x_train': X * np.nan}, 'mlp', 'inputs contains nan in example 0'),
    ({'x_test': X[:, :1]}, 'mlp', 'give all parts the same shape'),
    ({'y_test': Y + 1}, 'mlp', 'has the label 3, and the model has 3 outputs'),
    (
      {'y_train': Y.astype(object)},
      'mlp',
      'y_train cannot be read: Object arrays',
    ),
    ({'y_train': Y[1:]}, 'mlp', 'has 8 examples and targets has 7'),
    ({'y_train': None}, 'mlp', 'mine.npz: it has no y_train'),
    (None, 'mlp', 'mine.npz: it cannot be read'),
  ],
)
def test_own_data_and_models_that_do_not_fit_are_reported_in_one_line(
  command, changes, model, named, capsys, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(Trainer, 'run', None)
  (tmp_path / 'own.py').write_text(MODELS)
  (tmp_path / 'mine.npz').write_bytes(b'damaged')
  if changes is not None:
    arrays = {'x_train': X, 'y_train': Y, 'x_test': X, 'y_test': Y} | changes
    kept = {key: value for key, value in arrays.items() if value is not None}
    np.savez(tmp_path / 'mine.npz', **kept)
  few = ['--batch-size', 4, '--sharpness-examples', 4]
  data = ['--dataset', 'mine.npz', '--model', model, *few]
  assert named in refused(capsys, command, *data)
  left = {path.name for path in tmp_path.iterdir()} - {'__pycache__'}
  assert left == {'own.py', 'mine.npz'}


@pytest.mark.parametrize('command', ['compare', 'train'])
def test_help_has_groups_one_default_each_and_examples(
  command, capsys, monkeypatch
):
  monkeypatch.setenv('COLUMNS', '80')
  assert call(command, '--help') == 0
  text = capsys.readouterr().out
  for group in ('data', 'model', 'method', 'optimizer', 'output'):
    assert f' {group} options ' in text
  assert '--label-noise' in text
  assert 'None' not in text
  assert '[default' not in text
  flags = text.count('(default: ') + text.count('(repeatable)')
  lines = re.findall(r'^[│| ]{0,2}--?\w', text, re.MULTILINE)
  assert flags == len(lines) - 1  # --help has none
  assert f'\nExamples:\n  optax-sam {command}' in text


@pytest.mark.parametrize('command', [key for key in arguments.EXAMPLES if key])
def test_examples_of_the_help_can_be_parsed(command):
  for example in arguments.EXAMPLES[command]:
    program, *flags = shlex.split(example)
    assert program == 'optax-sam'
    if '--resume' in flags:  # needs the run
      continue
    config = arguments.parse(flags)
    if command in ('compare', 'train'):
      checks.validate(config)


def test_aliases_and_names_in_any_spelling(monkeypatch):
  seen = []
  monkeypatch.setattr(compare, 'run', lambda config, *_: seen.append(config))
  with pytest.raises(AttributeError):  # the result is None
    call(
      'compare',
      '-m',
      'SAM,look-sam',
      '--lr',
      '0.5',
      '-o',
      'x',
      '--base',
      'Lion',
    )
  (config,) = seen
  assert config.methods == ('sam', 'look_sam')
  assert (config.base, config.learning_rate) == ('lion', 0.5)
  assert str(config.output) == 'x'


def test_version_is_that_of_the_package(capsys):
  for command in ([], ['train'], ['compare']):
    assert call(*command, '--version') == 0
    assert capsys.readouterr().out == f'optax-sam {optax_sam.__version__}\n'


def test_ctrl_c_exits_with_130(capsys, monkeypatch):
  def interrupted(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(compare, 'run', interrupted)
  assert call('compare') == 130
  assert capsys.readouterr().err.count('\n') == 1


def test_convert_writes_shards(tmp_path, capsys):
  folder = pictures.make_folder(tmp_path / 'folder')
  target = tmp_path / 'shards'
  command = ['convert', '--output', target, '--shards', '3', '--source']
  assert 'train cannot be read' in refused(capsys, *command, 'missing')
  assert not target.exists()
  assert call(*command, folder) == 0
  out = capsys.readouterr().out
  assert 'train-00000-of-00003' in out
  assert f'Shards: {target}' in out


def test_names_with_control_characters_are_escaped(tmp_path, capfd):
  folder = pictures.make_folder(tmp_path / 'folder')
  for split in ('train', 'val'):
    changed = folder / split / 'n01\x1b[31m'
    (folder / split / 'n01').rename(changed)
    (changed / 'a\n\udcff\x9b2J.jpeg').write_bytes(b'no image')
  call('convert', '--source', folder, '--output', tmp_path / 'a', '--shards', 2)
  shown = r'n01\x1b[31m/a\n\udcff\x9b2J.jpeg'
  text, refusal = capfd.readouterr()
  assert not refusal
  said = []
  images = imagenet.ImageInputs(folder, batch_size=24, size=8, say=said.append)
  assert list(images.test())
  shutil.rmtree(folder / 'val' / 'n01\x1b[31m')
  refusal = refused(capfd, 'convert', '--source', folder, '--output', 'b')
  for shown_at, what in (
    (text, shown),
    (said[0], shown),
    (refusal, shown[:11]),
  ):
    assert what in shown_at
    assert not {'\x1b', '\x9b', '\udcff'} & set(shown_at)
