import dataclasses
import json
import pathlib

import pytest

from optax_sam.train.config import checks, configs


@pytest.mark.parametrize(
  ('field', 'value', 'named'),
  [
    ('dataset', 'cifar', 'digits, mnist1d'),
    ('model', 'resnet', 'mlp, cnn'),
    ('base', 'adam', 'sgd, adamw'),
    ('execution', 'gpu', 'auto, jit, host'),
    ('steps', 0, '--steps must be at least 1, not 0'),
    ('batch_size', 0, '--batch-size must be at least 1'),
    ('seeds', 0, '--seeds'),
    ('learning_rate', 0.0, '--learning-rate must be above 0'),
    ('learning_rate', float('nan'), '--learning-rate'),
    ('label_noise', 1.5, '--label-noise must be from 0 to 1'),
    ('rho', -0.1, '--rho must be at least 0'),
    ('rho', float('inf'), '--rho'),
    ('warmup', 1.0, '--warmup'),
    ('weight_decay', -1.0, '--weight-decay'),
    ('dtype', 'float16', 'float32, bfloat16'),
    ('clip_norm', 0.0, '--clip-norm must be above 0'),
    ('label_smoothing', 1.0, '--label-smoothing must be at least 0 and below'),
    ('ema_decay', 1.0, '--ema-decay must be at least 0 and below 1'),
  ],
)
def test_a_bad_value_is_named_with_what_is_allowed(field, value, named):
  changed = dataclasses.replace(configs.CompareConfig(), **{field: value})
  with pytest.raises(ValueError, match=named):
    checks.validate(changed)


def test_the_defaults_are_valid():
  checks.validate(configs.CompareConfig())
  checks.validate(configs.TrainConfig())


def test_each_base_has_its_own_defaults():
  sgd, adamw = (configs.CompareConfig(base=base) for base in ('sgd', 'adamw'))
  assert configs.learning_rate(sgd) > configs.learning_rate(adamw)
  assert configs.weight_decay(sgd) < configs.weight_decay(adamw)
  given = configs.CompareConfig(base='adamw', learning_rate=0.5, weight_decay=0)
  assert configs.learning_rate(given) == 0.5
  assert configs.weight_decay(given) == 0


def test_settings_survive_json_and_leave_the_output_out():
  settings = configs.settings(configs.TrainConfig(set=('sam.rho=1',)))
  assert json.loads(json.dumps(settings)) == settings
  assert not {'output', 'overwrite', 'resume'} & set(settings)


@pytest.mark.parametrize(
  'field', ['image_size', 'input_threads', 'prefetch', 'epochs']
)
def test_numbers_of_the_input_are_at_least_1(field):
  changed = dataclasses.replace(configs.TrainConfig(), **{field: 0})
  flag = '--' + field.replace('_', '-')
  with pytest.raises(ValueError, match=f'{flag} must be at least 1, not 0'):
    checks.validate(changed)


def test_by_what_means_a_run_is_made_is_no_setting():
  plain = configs.settings(configs.TrainConfig())
  changed = configs.TrainConfig(
    data_dir=pathlib.Path('x'), mesh='data=8', prefetch=1, input_threads=1
  )
  assert configs.settings(changed) == plain
