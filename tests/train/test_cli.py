import pytest

import optax_sam
from optax_sam.train.commands import compare
from optax_sam.train.optimizers import registry
from tests.train.data.imagenet import pictures
from tests.train.runs import call, refused


@pytest.mark.parametrize(
  ('arguments', 'named'),
  [
    # Found by the parser
    ([], 'compare, train, sharpness'),
    (['compair'], 'compare, train, sharpness'),
    (['compare', '--stepz', '3'], '--stepz'),
    (['compare', '--step', '3'], '--steps'),
    (['compare', '--steps', 'many'], 'many'),
    (['compare', '--model', 'resnet'], "'mlp', 'cnn'"),
    (['convert', '--source', 'x'], '--output'),
    # Found by the commands
    (['compare', '--steps', '0'], '--steps must be at least 1'),
    (['compare', '--set', 'sam.radius=1'], 'choose among rho'),
    (['train', '--method', 'adam'], 'sam, asam'),
    (['train', '--config', 'none.json'], 'none.json cannot be read'),
    (['train', '--model', 'vit_s16'], '--model vit_s16 on digits: patch'),
    # A directory where not even root may write
    (['compare', '--output', '/proc/optax-sam/out'], 'cannot write'),
  ],
)
def test_invalid_input_is_reported_in_one_line_with_status_2(
  arguments, named, capsys
):
  error = refused(capsys, *arguments)
  assert named in error
  assert '---' not in error


def test_help_exits_with_0(capsys):
  for command in ('compare', 'train'):
    assert call(command, '--help') == 0
    assert '--label-noise' in capsys.readouterr().out


def test_version_is_that_of_the_package(capsys):
  assert call('--version') == 0
  assert capsys.readouterr().out == f'optax-sam {optax_sam.__version__}\n'


def test_methods_lists_every_method(capsys):
  assert call('methods') == 0
  table = capsys.readouterr().out
  for name in registry.METHODS:
    assert name in table


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
  assert 'train is missing' in refused(capsys, *command, 'missing')
  assert not target.exists()
  assert call(*command, folder) == 0
  out = capsys.readouterr().out
  assert 'train 1/3' in out
  assert f'Shards: {target}' in out
