import json
import pathlib

import pytest

from optax_sam.train import cli
from optax_sam.train.commands import train
from optax_sam.train.config import arguments as arguments_lib
from optax_sam.train.config import checks, configs, files


@pytest.fixture
def write(tmp_path):
  def write(content):
    path = tmp_path / 'flags.json'
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text)
    return str(path)

  return write


def parse(*arguments):
  return arguments_lib.parse(['train', *arguments])


def test_a_file_gives_flags(write):
  path = write(
    {
      'about': ['Any text.'],
      'method': 'ae_sam',
      'batch-size': 64,
      'label_smoothing': 0.1,
      'learning-rate': 1e-05,
      'set': ['ae_sam.lambda_2=2', 'ae_sam.decay=0.5'],
      'overwrite': True,
      'resume': False,
      'rho': None,
    }
  )
  for form in (['--config', path], [f'--config={path}']):
    found = parse(*form)
    assert found.method == 'ae_sam'
    assert found.batch_size == 64
    assert found.label_smoothing == 0.1
    assert found.learning_rate == 1e-5
    assert found.set == ('ae_sam.lambda_2=2', 'ae_sam.decay=0.5')
    assert found.overwrite
    assert not found.resume
    assert found.rho is None


def test_the_command_line_has_the_last_word(write):
  path = write({'method': 'sam', 'epochs': 90, 'set': ['sam.rho=1']})
  found = parse('--method', 'asam', '--config', path, '--batch-size', '7')
  assert (found.method, found.epochs, found.batch_size) == ('asam', 90, 7)
  found = parse('--config', path, '--steps=10', '--set', 'sam.rho=2')
  assert (found.steps, found.epochs) == (10, None)
  assert found.set == ('sam.rho=1', 'sam.rho=2')
  path = write({'steps': 90})
  found = parse('--config', path, '--epochs', '1')
  assert (found.steps, found.epochs) == (configs.TrainConfig.steps, 1)


def test_what_a_file_gives_is_no_setting_of_its_own(write):
  found = configs.settings(parse('--config', write({'steps': 7})))
  assert found == configs.settings(parse('--steps', '7'))


@pytest.mark.parametrize(
  ('content', 'complaint'),
  [
    ({'stepz': 1}, "'stepz' is no flag; choose among base, batch-size"),
    ({'config': 'x'}, "'config' is no flag"),
    ({'steps': 'many'}, 'many'),
    ({'steps': {'a': 1}}, "'steps' must be text, a number or true or false"),
    ([1], 'must hold one object'),
    ('{', 'is not JSON'),
  ],
)
def test_a_wrong_file_is_one_line_and_status_2(
  content, complaint, write, capsys
):
  with pytest.raises(SystemExit) as stop:
    cli.main(['train', '--config', write(content)])
  assert stop.value.code == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1
  assert complaint in error


def test_a_missing_file_is_one_line(tmp_path):
  with pytest.raises(ValueError, match=r'none.json cannot be read: No such'):
    parse('--config', str(tmp_path / 'none.json'))


def test_other_commands_take_no_file(write):
  arguments = ['compare', '--config', write({'steps': 1})]
  assert files.expand(arguments) == arguments


RECIPES = sorted(pathlib.Path(__file__).parents[2].glob('recipes/*/*.json'))


# Of the training set, at the batch that all recipes have.
_STEPS_PER_EPOCH = 1_281_167 // 4096


def test_there_are_recipes():
  assert len(RECIPES) == 10


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
def test_recipes_are_complete_but_for_the_images(path, tmp_path):
  found = parse('--config', str(path), '--data-dir', str(tmp_path))
  checks.validate(found)
  train.method_settings(found)
  assert path.stem == f'{found.model}_{found.method}'
  assert found.batch_size == 4096
  steps = found.epochs * _STEPS_PER_EPOCH
  expected = {'resnet50': 5 * _STEPS_PER_EPOCH, 'vit_s16': 10_000}
  assert round(found.warmup * steps) == expected[found.model]
