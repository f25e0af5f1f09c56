"""Runs on images that are read from disk."""

import dataclasses
import io
import json
import math
import os
import signal

import jax
import numpy as np
import pytest
from rich.console import Console

from optax_sam.train.commands import train
from optax_sam.train.config import configs
from optax_sam.train.data import imagenet, inputs
from optax_sam.train.distributed.sharding import Placement
from optax_sam.train.loop import checkpoints, evaluation, task
from optax_sam.train.loop.trainer import Trainer, sharpness
from optax_sam.train.optimizers import build
from tests.imagenet import pictures

STRICT = False  # Flax promotes ranks

STEPS_PER_EPOCH = 9
SMALL = {
  'dataset': 'imagenet',
  'image_size': 32,
  'input_threads': 2,
  'prefetch': 2,
  'batch_size': 12,
  'evaluations': 2,
  'log_every': 1,
  'sharpness_examples': 6,
  'checkpoint_every': 4,
}


@pytest.fixture(scope='module', autouse=True)
def quick_eigenvalues():
  """Finding them takes longer than everything else here."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sharpness, 'top_eigenvalue', lambda *_, **__: 7.0)
    yield


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """108 images to train on, 24 to test on."""
  return pictures.make_folder(tmp_path_factory.mktemp('images') / 'folder')


@pytest.fixture(scope='module')
def images_config(folder):
  def make(**changes):
    return configs.TrainConfig(**(SMALL | {'data_dir': folder} | changes))

  return make


def run(settings):
  text = io.StringIO()
  finished = train.run(settings, Console(file=text, width=200))
  return finished, text.getvalue()


def trainer(settings):
  return Trainer(
    settings,
    task.build(settings, pytest.fail),
    settings.method,
    build.complete_settings(settings.method, {}, None),
  )


def rows(directory):
  lines = (directory / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


@pytest.fixture(scope='module')
def whole(images_config, tmp_path_factory):
  """A run that nothing interrupted."""
  settings = images_config(
    method='ss_sam',
    epochs=2,
    ema_decay=0.5,
    output=tmp_path_factory.mktemp('train') / 'whole',
  )
  finished, text = run(settings)
  assert finished
  return settings, text


def test_epochs_are_steps_for_this_many_images(whole):
  settings, _ = whole
  kinds = [row['kind'] for row in rows(settings.output)]
  steps = 2 * STEPS_PER_EPOCH
  assert kinds == ['log'] * steps + ['evaluation'] * 2 + ['sharpness']


def test_it_evaluates_the_weights_and_their_average(whole):
  settings, text = whole
  for row in rows(settings.output):
    if row['kind'] == 'evaluation':
      assert row['test_loss'] != row['ema_test_loss']
      # Of 24 images.
      right = 24 * row['test_accuracy'], 24 * row['ema_test_accuracy']
      assert all(abs(value - round(value)) < 1e-9 for value in right)
      assert 'train_accuracy' not in row
  assert 'of the averaged weights' in text


def interrupt_at(monkeypatch, step):
  original = Trainer.batch

  def batch(self, **position):
    if position['step'] == step - 1:
      os.kill(os.getpid(), signal.SIGINT)
    return original(self, **position)

  monkeypatch.setattr(Trainer, 'batch', batch)


@pytest.mark.parametrize('step', [7, STEPS_PER_EPOCH])
def test_resume_is_exact_to_the_bit(whole, step, tmp_path, monkeypatch):
  first = dataclasses.replace(whole[0], output=tmp_path / 'run')
  with monkeypatch.context() as patch:
    interrupt_at(patch, step)
    assert not run(first)[0]
  finished, text = run(dataclasses.replace(first, resume=True))
  assert finished
  assert f'Resuming from the checkpoint of step {step}' in text
  found, expected = (
    settings.output / 'metrics.jsonl' for settings in (first, whole[0])
  )
  assert found.read_bytes() == expected.read_bytes()


def test_shards_go_on_where_their_folder_was(
  whole, folder, tmp_path, monkeypatch
):
  first = dataclasses.replace(whole[0], output=tmp_path / 'run')
  with monkeypatch.context() as patch:
    interrupt_at(patch, 11)
    assert not run(first)[0]
  shards = tmp_path / 'shards'
  imagenet.convert(folder, shards, shards=3, threads=2, say=lambda _: None)
  finished, _ = run(dataclasses.replace(first, resume=True, data_dir=shards))
  assert finished
  assert rows(first.output) == rows(whole[0].output)


def test_other_images_are_not_gone_on_with(
  images_config, tmp_path, monkeypatch
):
  # Steps, so that the number of them does not differ already.
  first = images_config(
    method='ss_sam', steps=18, ema_decay=0.5, output=tmp_path / 'run'
  )
  with monkeypatch.context() as patch:
    interrupt_at(patch, 3)
    assert not run(first)[0]
  other = pictures.make_folder(tmp_path / 'other')
  next(other.glob('train/n01/*')).unlink()
  changed = dataclasses.replace(first, resume=True, data_dir=other)
  with pytest.raises(ValueError, match='examples was 108 and is now 107'):
    run(changed)


def test_a_checkpoint_knows_the_place_in_the_data(whole):
  settings, _ = whole
  one = trainer(dataclasses.replace(settings, steps=18, epochs=None))
  with checkpoints.Checkpoints(settings.output / 'checkpoints', {}) as saved:
    found = saved.restore(one.start(0).state, pytest.fail)
  assert found.inputs == {
    'step': 18,
    'examples': 108,
    'batch_size': 12,
    'seed': 0,
  }


def test_a_batch_is_a_function_of_step_and_seed(images_config):
  settings = images_config()
  one, other = (task.build(settings, pytest.fail).inputs for _ in range(2))
  expected = [one.batch(step, 0) for step in range(12)]
  for step in (0, 7, 8, 3, 11):
    found = other.batch(step, 0)
    for name, values in expected[step].items():
      np.testing.assert_array_equal(found[name], values)
  assert expected[0]['inputs'].dtype == np.uint8
  sample = one.sample()
  for name, values in expected[0].items():
    assert (sample[name].shape, sample[name].dtype) == (
      values.shape,
      values.dtype,
    )
  assert not np.array_equal(other.batch(0, 1)['labels'], expected[0]['labels'])
  assert inputs.steps_per_epoch(one) == STEPS_PER_EPOCH
  one.close()
  other.close()


def test_padding_counts_nothing_in_an_evaluation(images_config):
  results = []
  for batch_size in (10, 24):
    one = trainer(images_config(batch_size=batch_size))
    state = one.start(0).state
    results.append(
      evaluation.evaluate(
        one.task,
        state.params,
        state.statistics,
        one.task.inputs.test(),
        Placement(),
      )
    )
    if batch_size == 24:
      (batch,) = one.task.inputs.test()
      expected = one.task.evaluate(state.params, state.statistics, batch)
      np.testing.assert_allclose(results[-1], expected, rtol=1e-5)
  np.testing.assert_allclose(*results, rtol=1e-5)
  assert results[0][1] == results[1][1]


def test_without_any_example_there_is_no_mean(images_config):
  one = trainer(images_config())
  state = one.start(0).state
  found = evaluation.evaluate(
    one.task, state.params, state.statistics, [], Placement()
  )
  assert all(math.isnan(value) for value in found)


def test_saf_keeps_a_table_of_all_images(images_config):
  one = trainer(images_config(method='saf', steps=10, evaluations=1))
  progress = one.start(0)
  shown = [one.batch(step=step, seed=0)['ids'] for step in range(10)]
  one.run(progress, 0)
  one.task.close()
  expected = np.zeros((1024, 3), bool)
  expected[np.concatenate(shown[:9]), 0] = True
  expected[shown[9], 1] = True
  np.testing.assert_array_equal(progress.state.memory.filled, expected)
  assert expected[:108, 0].all()


@pytest.mark.parametrize('name', ['k_sam', 'esam'])
def test_losses_of_single_examples_serve_their_methods(images_config, name):
  one = trainer(images_config(method=name, steps=3, evaluations=1))
  progress = one.start(0)
  one.run(progress, 0)
  one.task.close()
  assert [math.isfinite(row['loss']) for row in progress.log] == [True] * 3


def test_sharpness_is_of_fixed_images_of_all_classes(images_config):
  one = task.build(images_config(), pytest.fail).inputs
  first, second = one.fixed(6), one.fixed(6)
  np.testing.assert_array_equal(first['inputs'], second['inputs'])
  assert sorted(first['labels']) == list(range(6))
  assert first['is_example'].all()


def test_corrupt_images_are_named_and_counted(images_config, tmp_path):
  damaged = pictures.make_folder(tmp_path / 'damaged')
  path = next(damaged.glob('val/n03/*'))
  pictures.truncate(path)
  settings = images_config(
    data_dir=damaged, steps=1, method='sgd', output=tmp_path / 'run'
  )
  finished, text = run(settings)
  assert finished
  assert text.count(f'{path} cannot be decoded') == 1
  assert 'Images skipped as corrupt: 1.' in text


def test_it_computes_in_bfloat16_and_keeps_float32(images_config):
  results = {}
  for dtype in ('float32', 'bfloat16'):
    one = trainer(images_config(dtype=dtype))
    state, batch = one.start(0).state, one.batch(step=0, seed=0)
    program = jax.make_jaxpr(one.task.loss)(
      state.params, state.statistics, batch, state.key
    )
    assert ('bf16' in str(program)) == (dtype == 'bfloat16')
    arrays = (state.params, state.statistics)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(arrays)} == {'float32'}
    state, metrics = one.step(state, batch)
    one.task.close()
    arrays = (state.params, state.statistics)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(arrays)} == {'float32'}
    results[dtype] = float(metrics['loss'])
  assert results['bfloat16'] == pytest.approx(results['float32'], rel=0.05)


@pytest.mark.parametrize(
  ('changes', 'complaint'),
  [
    ({'data_dir': None}, '--dataset imagenet needs --data-dir'),
    ({'label_noise': 0.1}, '--label-noise is for digits and mnist1d'),
    ({'batch_size': 200}, '--batch-size must be at most 108'),
    ({'sharpness_examples': 200}, '--sharpness-examples must be at most 108'),
    ({'method': 'ordered_sgd'}, r'give --set ordered_sgd\.k='),
    ({'method': 'swad'}, 'imagenet; train on digits or mnist1d, or call'),
    ({'dataset': 'digits'}, '--data-dir is for --dataset imagenet'),
    ({'steps': 10, 'epochs': 2}, '--steps and --epochs both'),
    (
      {'model': 'vit_s16', 'image_size': 40},
      '--model vit_s16 on imagenet: patch must divide the sides',
    ),
  ],
)
def test_what_cannot_be_done_is_said_before_anything(
  images_config, changes, complaint, tmp_path
):
  settings = images_config(**changes, output=tmp_path / 'run')
  with pytest.raises(ValueError, match=complaint):
    run(settings)
  assert not list(tmp_path.iterdir())


def test_a_missing_directory_is_said_before_anything(images_config, tmp_path):
  settings = images_config(
    data_dir=tmp_path / 'missing', output=tmp_path / 'run'
  )
  with pytest.raises(ValueError, match='missing is not a directory'):
    run(settings)
  assert not list(tmp_path.iterdir())
