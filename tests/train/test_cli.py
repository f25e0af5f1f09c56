import subprocess
import sys

import pytest

from optax_sam.train import cli
from optax_sam.train.data.imagenet import conversion
from optax_sam.train.optimizers import registry
from tests.imagenet import pictures
from tests.train import problems

STRICT = False  # Flax promotes ranks

SMALL = [
  argument
  for name, value in problems.SMALL.items()
  for argument in (f'--{name.replace("_", "-")}', str(value))
]


def call(*arguments):
  with pytest.raises(SystemExit) as stop:
    cli.main(list(arguments))
  return stop.value.code


@pytest.mark.parametrize(
  ('arguments', 'named'),
  [
    ([], 'compare, train, sharpness'),
    (['compair'], 'compare, train, sharpness'),
    (['compare', '--stepz', '3'], '--stepz'),
    (['compare', '--step', '3'], '--steps'),
    (['compare', '--steps', 'many'], 'many'),
    (['compare', '--steps', '0'], '--steps must be at least 1'),
    (['compare', '--dataset', 'cifar'], "'digits', 'mnist1d'"),
    (['compare', '--model', 'resnet'], "'mlp', 'cnn'"),
    (['compare', '--methods', 'adam'], 'sam, asam'),
    (['compare', '--set', 'sam.radius=1'], 'choose among rho'),
    (['compare', '--set', 'sam.rho'], 'METHOD.SETTING=VALUE'),
    (['train', '--method', 'adam'], 'sam, asam'),
    (['train', '--resume'], '--resume needs --output'),
    (['train', '--mesh', 'data=3'], '--mesh data=3 must be of all devices'),
    (['train', '--dataset', 'imagenet'], 'needs --data-dir'),
    (['train', '--data-dir', 'x'], '--data-dir is for --dataset imagenet'),
    (['train', '--config', 'none.json'], 'none.json cannot be read'),
    (
      ['train', '--method', 'swad', '--batch-size', '950'],
      '--batch-size must be at most 900, the training examples that swad',
    ),
    (
      ['compare', '--methods', 'swad', '--batch-size', '950'],
      '--batch-size must be at most 900, the training examples that swad',
    ),
    (
      ['train', '--method', 'swad', '--dataset', 'imagenet', '--data-dir', 'x'],
      'call optax_sam.swad in a training loop of your own',
    ),
    (['compare', '--dataset', 'imagenet'], "'digits', 'mnist1d'"),
    (['train', '--model', 'vit_s16'], '--model vit_s16 on digits: patch'),
    (['train', '--model', 'resnet18', '--dataset', 'mnist1d'], 'mlp or cnn'),
    (['convert', '--source', 'x'], '--output'),
  ],
)
def test_bad_input_is_one_line_and_status_2(arguments, named, capsys):
  assert call(*arguments) == 2
  captured = capsys.readouterr()
  assert captured.out == ''
  assert captured.err.count('\n') == 1
  assert captured.err.startswith('optax-sam: error: ')
  assert named in captured.err
  assert '---' not in captured.err


def test_an_existing_output_is_one_line(tmp_path, capsys):
  assert call('compare', '--output', str(tmp_path)) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1
  assert '--overwrite' in error


def test_an_impossible_output_is_one_line(tmp_path, capsys):
  (tmp_path / 'file').write_text('mine')
  assert call('compare', '--output', str(tmp_path / 'file' / 'out')) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1
  assert 'cannot write' in error


def test_a_read_only_place_is_one_line(capsys):
  # A place where not even root may write.
  assert call('compare', '--output', '/proc/optax-sam/out') == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1
  assert 'cannot write' in error


def test_help_exits_with_0(capsys):
  for command in ('compare', 'train'):
    assert call(command, '--help') == 0
    assert '--label-noise' in capsys.readouterr().out


def test_methods_lists_every_method(capsys):
  assert call('methods') == 0
  table = capsys.readouterr().out
  for name in registry.METHODS:
    assert name in table


def test_methods_loads_neither_models_nor_checkpoints():
  program = (
    'import sys; from optax_sam.train import cli\n'
    'try: cli.main(["methods"])\n'
    'except SystemExit: pass\n'
    'print(*sorted({"flax", "orbax", "sklearn", "matplotlib"} & '
    'set(sys.modules)), file=sys.stderr)'
  )
  done = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, text=True, check=True
  )
  assert done.stderr.strip() == ''


def test_compare_writes_its_command_and_exits_with_0(tmp_path, capsys):
  target = tmp_path / 'out'
  arguments = ['--methods', 'sam', '--seeds', '1', '--timing-rounds', '0']
  command = ['compare', *SMALL, *arguments, '--output', str(target)]
  assert call(*command) == 0
  out = capsys.readouterr().out
  assert str(target / 'report.html') in out
  page = (target / 'report.html').read_text()
  assert 'optax-sam compare --model mlp' in page


def test_ctrl_c_exits_with_130(capsys, monkeypatch):
  from optax_sam.train.commands import compare

  def interrupted(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(compare, 'run', interrupted)
  assert call('compare') == 130
  assert capsys.readouterr().err.count('\n') == 1


@pytest.fixture
def folder(tmp_path):
  return pictures.make_folder(tmp_path / 'folder')


def test_convert_writes_shards_once(folder, tmp_path, capsys):
  target = tmp_path / 'shards'
  command = ['convert', '--source', str(folder), '--output', str(target)]
  command += ['--shards', '3', '--threads', '2']
  assert call(*command) == 0
  assert f'Shards: {target}' in capsys.readouterr().out
  before = problems.names(target)
  assert call(*command) == 0
  assert 'is converted already' in capsys.readouterr().out
  assert problems.names(target) == before


@pytest.mark.parametrize(
  ('changed', 'named'),
  [
    (['--shards', '0'], '--shards must be at least 1'),
    (['--threads', '0'], '--threads must be at least 1'),
    (['--source', 'missing'], 'missing/train is missing'),
  ],
)
def test_what_cannot_be_converted_is_one_line(
  changed, named, folder, tmp_path, capsys
):
  target = tmp_path / 'shards'
  command = ['convert', '--source', str(folder), '--output', str(target)]
  assert call(*command, *changed) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1
  assert named in error
  assert not target.exists()


def test_ctrl_c_in_a_conversion_says_how_to_go_on(
  folder, tmp_path, capsys, monkeypatch
):
  target = tmp_path / 'shards'
  command = ['convert', '--source', str(folder), '--output', str(target)]
  command += ['--shards', '3']
  original = conversion._write
  written = []

  def write(*arguments):
    if written:
      raise KeyboardInterrupt
    written.append(arguments)
    return original(*arguments)

  with monkeypatch.context() as patch:
    patch.setattr(conversion, '_write', write)
    assert call(*command) == 130
  captured = capsys.readouterr()
  assert captured.err.count('\n') == 1
  assert 'finished shards stay, and the same command goes on' in captured.err
  assert call(*command) == 0
  assert 'train 1/3' in capsys.readouterr().out
