import subprocess
import sys

import pytest

from optax_sam.train import cli, methods
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
    ([], 'compare, train, methods'),
    (['compair'], 'compare, train, methods'),
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
  ],
)
def test_bad_input_is_one_line_and_status_2(arguments, named, capsys):
  assert call(*arguments) == 2
  captured = capsys.readouterr()
  assert captured.out == ''
  assert captured.err.count('\n') == 1
  assert captured.err.startswith('optax-sam: error: ')
  assert named in captured.err


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
  for name in methods.METHODS:
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
  from optax_sam.train import compare

  def interrupted(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(compare, 'run', interrupted)
  assert call('compare') == 130
  assert capsys.readouterr().err.count('\n') == 1
