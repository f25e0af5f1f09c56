import json
import os
import pathlib

import pytest

from optax_sam.train.commands import train
from optax_sam.train.config import arguments as arguments_lib
from optax_sam.train.config import checks, configs, output_dir
from tests.train.runs import refused


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


def test_flags_are_read_from_a_file(write):
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
  expected = configs.settings(
    configs.TrainConfig(
      method='ae_sam',
      batch_size=64,
      label_smoothing=0.1,
      learning_rate=1e-5,
      set=('ae_sam.lambda_2=2', 'ae_sam.decay=0.5'),
    )
  )
  found = parse('--config', path)
  assert configs.settings(found) == expected
  assert (found.overwrite, found.resume) == (True, False)


def test_the_command_line_overrides_the_file(write):
  path = write({'method': 'sam', 'epochs': 90, 'set': ['sam.rho=1']})
  found = parse('--method', 'asam', '--config', path, '--batch-size', '7')
  assert (found.method, found.epochs, found.batch_size) == ('asam', 90, 7)
  found = parse(f'--config={path}', '--steps=300', '--set', 'sam.rho=2')
  assert (found.steps, found.epochs) == (300, None)
  assert found.set == ('sam.rho=1', 'sam.rho=2')
  found = parse(f'--config={path}', '-masam', '-oruns/x')
  assert (found.method, found.output) == ('asam', pathlib.Path('runs/x'))
  found = parse('--config', write({'steps': 90}), '--epochs', '1')
  assert (found.steps, found.epochs) == (configs.TrainConfig.steps, 1)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ({'stepz': 1}, "unknown flag 'stepz'; choose among adapter-rank, base"),
    ({'config': 'x'}, 'without config'),
    ({'steps': 'many'}, "--steps must be int, got str, not 'many'"),
    ({'seed': [1, 2]}, '--seed must be int, got array, not [1, 2]'),
    ({'seed': []}, '--seed must be int, got array'),
    ({'set': 'sam.rho=1'}, '--set must be array, got str'),
    ({'seed': 2**63}, '--seed must be at most 9223372036854775807'),
    ({'rho': 10**400}, '--rho Number out of range'),
    ({'dtype': 'float16'}, '--dtype must be one of float32, bfloat16, not'),
    ({'output': 'a\0b'}, "--output 'a\\x00b' must be printable text"),
    ({'dataset': '\udcff'}, '--dataset'),
    ({'data-dir': ''}, "--data-dir '' must be printable text"),
    ('{"seed": 1, "seed": 1}', "'seed' is given twice"),
    ('{"batch-size": 1, "batch_size": 1}', "'batch_size' is given twice"),
    ('{"steps": 1' + 5000 * '0' + '}', 'cannot be read'),
    ('[' * 100_000, 'cannot be read'),
    ({'steps': {'a': 1}}, '--steps must be int, got object'),
    ({'steps': 1, 'epochs': 1}, '--steps and --epochs both give the length'),
    ([1], 'must be a file of one JSON object'),
    ('{', 'cannot be read'),
  ],
)
def test_an_invalid_file_is_reported_in_one_line(
  content, message, write, capsys
):
  assert message in refused(capsys, 'train', '--config', write(content))


def test_one_regular_file_is_given(write, capsys, tmp_path):
  path = write({})
  twice = refused(capsys, 'train', '--config', path, f'--config={path}')
  assert '--config is given 2 times' in twice
  for flags in (['--config='], ['--config', ''], ['--config']):
    assert 'value' in refused(capsys, 'train', *flags)
  os.mkfifo(tmp_path / 'pipe')
  for special in ('/dev/zero', tmp_path, tmp_path / 'pipe'):
    named = refused(capsys, 'train', '--config', special)
    assert f'--config {special} must be a file' in named


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ({'optax_sam': 'train'}, 'is not a run of'),
    ({'optax_sam': 'train', 'settings': []}, 'is not a run of'),
    ({'optax_sam': 'train', 'settings': None}, 'is not a run of'),
    ({'optax_sam': 1, 'settings': {}}, 'is not a run of'),
    ({'optax_sam': 'compare', 'settings': {}}, 'is not a run of'),
    ({'optax_sam': 'train', 'settings': {'stepz': 1}}, "unknown flag 'stepz'"),
    (
      {'optax_sam': 'train', 'settings': {'steps': 'x'}},
      "config.json: --steps must be int, got str, not 'x'",
    ),
    ({'optax_sam': 'train', 'settings': {'set': 1}}, '--set must be array'),
    (
      {'optax_sam': 'train', 'settings': {}, 'data_dir': 3},
      'is not a run of',
    ),
    ('[' * 100_000, 'is not a run of'),
    ('\xff', 'is not a run of'),
  ],
)
def test_the_file_of_a_run_has_a_schema(content, message, tmp_path, capsys):
  path = tmp_path / output_dir.CONFIG
  text = content if isinstance(content, str) else json.dumps(content)
  path.write_text(text, encoding='latin-1')
  for command in (('train', '--resume', '--output'), ('sharpness',)):
    assert message in refused(capsys, *command, tmp_path)
  assert [one.name for one in tmp_path.iterdir()] == [output_dir.CONFIG]


RECIPES = sorted(pathlib.Path(__file__).parents[3].glob('recipes/*/*.json'))
# Steps per epoch on ImageNet at the batch size of all recipes
STEPS_PER_EPOCH = 1_281_167 // 4096


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
def test_recipes_need_only_the_images(path, tmp_path):
  found = parse('--config', str(path), '--data-dir', str(tmp_path))
  checks.validate(found)
  train.method_settings(found)
  assert len(RECIPES) == 10
  assert path.stem == f'{found.model}_{found.method}'
  assert found.batch_size == 4096
  steps = found.epochs * STEPS_PER_EPOCH
  expected = {'resnet50': 5 * STEPS_PER_EPOCH, 'vit_s16': 10_000}
  assert round(found.warmup * steps) == expected[found.model]
