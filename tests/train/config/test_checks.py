import dataclasses
import json
import pathlib

import pytest

from optax_sam.train.config import checks, configs
from tests.train.runs import refused


@pytest.mark.parametrize(
  ('field', 'value', 'named'),
  [
    ('dataset', 'cifar', 'digits, mnist1d'),
    ('model', 'resnet', 'mlp, cnn'),
    ('base', 'adamm', 'did you mean adam'),
    ('execution', 'gpu', 'auto, jit, host'),
    ('dtype', 'float16', 'float32, bfloat16'),
    ('batch_size', 0, '--batch-size must be at least 1, not 0'),
    ('learning_rate', 0.0, '--learning-rate must be above 0'),
    ('learning_rate', float('nan'), '--learning-rate'),
    ('label_noise', 1.0, '--label-noise must be below 1, not 1.0'),
    ('rho', -0.1, '--rho must be at least 0, not -0.1'),
    ('rho', 0.0, '--rho 0 perturbs nothing.*--method sgd'),
    ('rho', float('inf'), '--rho'),
    ('warmup', 1.0, '--warmup'),
    ('clip_norm', 0.0, '--clip-norm must be above 0'),
    ('label_smoothing', 1.0, '--label-smoothing must be below 1'),
    ('image_size', 0, '--image-size must be at least 1, not 0'),
    ('data_dir', pathlib.Path('x'), '--data-dir is for fashion_mnist'),
  ],
)
def test_an_invalid_flag_raises_with_name_and_range(field, value, named):
  changed = dataclasses.replace(configs.TrainConfig(), **{field: value})
  with pytest.raises(ValueError, match=named):
    checks.validate(changed)


TWO = '--num-processes 2 --process-id'


@pytest.mark.parametrize(
  ('flags', 'named'),
  [
    ('--coordinator here:1', '--num-processes and --process-id is missing'),
    ('--num-processes 2 --process-id 0', '--coordinator is missing'),
    ('--distributed --process-id 0', '--distributed finds the other'),
    (f'--coordinator here {TWO} 0', "'here' must read HOST:PORT"),
    (f'--coordinator here:0 {TWO} 0', "'here:0' must read HOST:PORT"),
    (f'--coordinator here:1 {TWO} 2', '--process-id must be below 2, not 2'),
    (f'--coordinator here:1 {TWO} 0 --steps 0', '--steps must be at least 1'),
    (f'--coordinator here:1 {TWO} 0 --mesh x=4', "'x=4' must be data or fsdp"),
    ('--steps 300 --epochs 2', '--steps and --epochs both give the length'),
  ],
)
def test_flags_are_checked_before_other_processes_are_waited_for(
  flags, named, capsys
):
  assert named in refused(capsys, 'train', *flags.split())


def test_each_base_has_its_own_defaults():
  sgd, adamw = (configs.CompareConfig(base=base) for base in ('sgd', 'adamw'))
  assert configs.learning_rate(sgd) > configs.learning_rate(adamw)
  assert configs.weight_decay(sgd) < configs.weight_decay(adamw)
  given = dataclasses.replace(adamw, learning_rate=0.5, weight_decay=0)
  assert configs.learning_rate(given) == 0.5
  assert configs.weight_decay(given) == 0


def test_paths_devices_and_processes_are_not_settings():
  changed = configs.TrainConfig(
    output=pathlib.Path('out'),
    overwrite=True,
    resume=True,
    data_dir=pathlib.Path('x'),
    prefetch=1,
    input_threads=1,
    mesh='data=8',
    coordinator='here:1',
    num_processes=2,
    process_id=1,
    distributed=True,
  )
  settings = configs.settings(changed)
  assert settings == configs.settings(configs.TrainConfig())
  assert json.loads(json.dumps(settings)) == settings
