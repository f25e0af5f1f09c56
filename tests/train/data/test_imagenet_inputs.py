"""Runs on images that are read from disk."""

import contextlib
import dataclasses

import jax
import numpy as np
import pytest

from optax_sam.train.config import configs
from optax_sam.train.data import inputs
from optax_sam.train.loop import task
from tests.train.data.imagenet import pictures
from tests.train.problems import assert_equal
from tests.train.runs import interrupt, metrics, resume, run

pytestmark = pytest.mark.usefixtures('quick_eigenvalues')

STEPS_PER_EPOCH = 9
SMALL = {
  'dataset': 'imagenet',
  'image_size': 16,
  'input_threads': 2,
  'prefetch': 2,
  'batch_size': 12,
  'evaluations': 2,
  'log_every': 1,
  'sharpness_examples': 6,
  'checkpoint_every': 4,
}


@pytest.fixture(scope='module')
def images_config(folder):
  def make(**changes):
    return configs.TrainConfig(**(SMALL | {'data_dir': folder} | changes))

  return make


@pytest.fixture(scope='module')
def whole(images_config, tmp_path_factory, quick_eigenvalues):
  """An uninterrupted run."""
  del quick_eigenvalues
  settings = images_config(
    method='ss_sam',
    epochs=2,
    output=tmp_path_factory.mktemp('train') / 'whole',
  )
  finished, text = run(settings)
  assert finished
  return settings, text


def test_every_test_image_is_evaluated(whole):
  rows = metrics(whole[0])
  steps = 2 * STEPS_PER_EPOCH
  kinds = [row['kind'] for row in rows]
  assert kinds == ['log'] * steps + ['evaluation'] * 2 + ['sharpness']
  for row in rows[steps : steps + 2]:
    right = 24 * row['test_accuracy']  # of 24 images
    assert abs(right - round(right)) < 1e-9
    assert 'train_accuracy' not in row


def test_a_run_on_a_folder_resumes_on_its_shards(whole, shards, tmp_path):
  first = dataclasses.replace(whole[0], output=tmp_path / 'run')
  interrupt(first, STEPS_PER_EPOCH + 2)
  text = resume(dataclasses.replace(first, data_dir=shards))
  assert f'from the checkpoint of step {STEPS_PER_EPOCH + 2}' in text
  assert metrics(first) == metrics(whole[0])


def test_resume_with_other_images_raises(images_config, own_folder, tmp_path):
  # --steps, because --epochs would already give another number of steps.
  first = images_config(method='ss_sam', steps=18, output=tmp_path / 'run')
  interrupt(first, 3)
  next(own_folder.glob('train/n01/*')).unlink()
  changed = dataclasses.replace(first, resume=True, data_dir=own_folder)
  with pytest.raises(ValueError, match='examples was 108 and is now 107'):
    run(changed)


def test_a_batch_is_a_function_of_step_and_seed(images_config):
  one, other = (
    task.build(images_config(), pytest.fail).inputs for _ in range(2)
  )
  with contextlib.closing(one), contextlib.closing(other):
    expected = [one.batch(step, 0) for step in range(12)]
    for step in (0, 7, 8, 3, 11):
      assert_equal(other.batch(step, 0), expected[step])
    first, sample = expected[0], one.sample()
    assert first['inputs'].dtype == np.uint8
    assert jax.eval_shape(dict, **sample) == jax.eval_shape(dict, **first)
    assert not np.array_equal(other.batch(0, 1)['labels'], first['labels'])
    assert inputs.steps_per_epoch(one) == STEPS_PER_EPOCH


def test_sharpness_uses_fixed_images_of_all_classes(images_config):
  one = task.build(images_config(), pytest.fail).inputs
  first, second = one.fixed(6), one.fixed(6)
  np.testing.assert_array_equal(first['inputs'], second['inputs'])
  assert sorted(first['labels']) == list(range(6))
  assert first['is_example'].all()


def test_a_corrupt_image_is_skipped_and_reported(
  images_config, own_folder, tmp_path
):
  path = next(own_folder.glob('val/n03/*'))
  pictures.truncate(path)
  finished, text = run(
    images_config(data_dir=own_folder, steps=1, output=tmp_path / 'run')
  )
  assert finished
  assert text.count(f'{path} cannot be decoded') == 1
  assert 'Images skipped as corrupt: 1.' in text


@pytest.mark.parametrize('split', ['train', 'val'])
def test_only_corrupt_images_are_an_error(
  images_config, own_folder, tmp_path, split
):
  for path in own_folder.glob(f'{split}/*/*'):
    pictures.truncate(path)
  message = f'none of the .* images of {own_folder / split} is usable'
  with pytest.raises(ValueError, match=message):
    run(images_config(data_dir=own_folder, output=tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'data_dir': None}, '--dataset imagenet needs --data-dir'),
    ({'label_noise': 0.1}, '--label-noise is not for imagenet'),
    ({'batch_size': 200}, '--batch-size must be at most 108'),
    ({'method': 'swad'}, 'imagenet does not have; train on digits or mnist1d'),
    (
      {'model': 'vit_s16', 'image_size': 40},
      '--model vit_s16 on imagenet: .*: patch must divide the sides',
    ),
  ],
)
def test_invalid_flags_raise_before_training(
  images_config, changes, message, tmp_path
):
  settings = images_config(**changes, output=tmp_path / 'run')
  with pytest.raises(ValueError, match=message):
    run(settings)
  assert not list(tmp_path.iterdir())
