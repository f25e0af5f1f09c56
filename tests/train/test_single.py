import dataclasses
import io
import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from optax_sam.train.commands import train
from optax_sam.train.config import output_dir
from optax_sam.train.loop import checkpoints, task
from optax_sam.train.loop.trainer import Trainer
from tests.train import problems

STRICT = False  # Flax promotes ranks


def run(config):
  text = io.StringIO()
  finished = train.run(config, Console(file=text, width=200))
  return finished, text.getvalue()


def files(directory):
  return {
    str(path.relative_to(directory)): path.read_bytes()
    for path in sorted(directory.rglob('*'))
    if path.is_file()
  }


def arrays(config):
  """Returns all arrays of the last checkpoint of a run, and its record."""
  trainer = Trainer(
    config,
    task.build(config),
    config.method,
    train.method_settings(config),
  )
  with checkpoints.Checkpoints(config.output / 'checkpoints', {}) as saved:
    progress = saved.restore(trainer.start(config.seed).state, print)
  leaves = [
    jax.random.key_data(leaf)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    else leaf
    for leaf in jax.tree.leaves(progress.state)
  ]
  return progress, [np.asarray(leaf) for leaf in leaves]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A run that nothing interrupted; a method with a key in its state."""
  config = problems.train_config(
    method='ss_sam', output=tmp_path_factory.mktemp('train') / 'whole'
  )
  finished, text = run(config)
  assert finished
  return config, text


@pytest.fixture
def copy(whole, tmp_path):
  config, _ = whole
  shutil.copytree(config.output, tmp_path / 'copy')
  return dataclasses.replace(config, output=tmp_path / 'copy', resume=True)


def steps_of(config):
  names = problems.names(config.output / 'checkpoints')
  return sorted(int(name) for name in names if name.isdigit())


def damage_arrays(config, step):
  """Cuts the largest file of a checkpoint short."""
  directory = config.output / 'checkpoints' / str(step)
  largest = max(
    (path for path in directory.rglob('*') if path.is_file()),
    key=lambda path: path.stat().st_size,
  )
  os.truncate(largest, largest.stat().st_size // 2)


def assert_same_end(config, other):
  progress, expected = arrays(other)
  found_progress, found = arrays(config)
  for one, two in zip(found, expected, strict=True):
    np.testing.assert_array_equal(one, two)
  assert found_progress.step == progress.step
  np.testing.assert_equal(found_progress.log, progress.log)
  assert found_progress.evaluations == progress.evaluations
  metrics = [run.output / 'metrics.jsonl' for run in (config, other)]
  assert metrics[0].read_bytes() == metrics[1].read_bytes()


def test_it_leaves_three_checkpoints_and_its_metrics(whole):
  config, text = whole
  assert steps_of(config) == [6, 9, 12]
  rows = [
    json.loads(line)
    for line in (config.output / 'metrics.jsonl').read_text().splitlines()
  ]
  kinds = [row['kind'] for row in rows]
  assert kinds == ['log'] * 12 + ['evaluation'] * 2 + ['sharpness']
  assert problems.names(config.output) == train.FILES
  assert 'steps took a second gradient' in text


def test_resume_is_exact_to_the_bit(whole, copy, monkeypatch):
  shutil.rmtree(copy.output)
  first = dataclasses.replace(copy, resume=False)
  interrupt_at(monkeypatch, 7)
  finished, text = run(first)
  assert not finished
  assert 'Interrupted after step 7 of 12' in text
  assert not (copy.output / 'metrics.jsonl').exists()
  monkeypatch.undo()
  finished, text = run(copy)
  assert finished
  assert 'Resuming from the checkpoint of step 7' in text
  assert_same_end(copy, whole[0])


@pytest.fixture(scope='module')
def following(tmp_path_factory):
  """An uninterrupted run, one of whose settings follows the accuracy."""
  config = problems.train_config(
    method='ordered_sgd',
    steps=40,
    batch_size=100,  # epochs end at 10, 20, 30
    output=tmp_path_factory.mktemp('train') / 'following',
  )
  finished, _ = run(config)
  assert finished
  values = [row['setting_k'] for row in arrays(config)[0].log]
  assert values[:20] == [1.0] * 20
  assert values[20] < 1
  return config


@pytest.mark.parametrize(
  ('step', 'sent'), [(20, signal.SIGINT), (24, signal.SIGTERM)]
)
def test_resume_goes_on_with_the_value_that_was_reached(
  step, sent, following, tmp_path, monkeypatch
):
  config = dataclasses.replace(following, output=tmp_path / 'run')
  interrupt_at(monkeypatch, step, sent)
  assert not run(config)[0]
  monkeypatch.undo()
  finished, text = run(dataclasses.replace(config, resume=True))
  assert finished
  assert f'Resuming from the checkpoint of step {step}' in text
  assert_same_end(config, following)


def test_a_second_ctrl_c_saves_no_half_step(following, tmp_path, monkeypatch):
  original = Trainer._train_accuracy

  def accuracy(self, state):
    if int(state.step) == 20:
      os.kill(os.getpid(), signal.SIGINT)
      os.kill(os.getpid(), signal.SIGINT)
    return original(self, state)

  config = dataclasses.replace(following, output=tmp_path / 'run')
  monkeypatch.setattr(Trainer, '_train_accuracy', accuracy)
  assert not run(config)[0]
  monkeypatch.undo()
  finished, text = run(dataclasses.replace(config, resume=True))
  assert finished
  assert 'Resuming from the checkpoint of step 18' in text
  assert_same_end(config, following)


def interrupt_at(monkeypatch, step, sent=signal.SIGINT):
  """Sends what Ctrl-C sends, or another signal, in the middle of a step."""
  original = Trainer.batch

  def batch(self, **position):
    if position['step'] == step - 1:
      os.kill(os.getpid(), sent)
    return original(self, **position)

  monkeypatch.setattr(Trainer, 'batch', batch)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(whole, copy):
  damage_arrays(copy, 12)
  finished, text = run(copy)
  assert finished
  assert 'The checkpoint of step 12 is damaged' in text
  assert 'Resuming from the checkpoint of step 9' in text
  assert_same_end(copy, whole[0])


def test_rows_that_come_while_a_checkpoint_is_written_are_not_in_it(
  tmp_path,
):
  start = problems.trainer('sam').start(seed=0)
  with checkpoints.Checkpoints(tmp_path, {}) as saved:
    for step in range(1, 21):
      start.step = step
      start.log.append({'step': float(step)})
      start.evaluations.append({'step': float(step)})
      saved.save(start)
      # Written in the background, from what these lists hold by then.
      start.log.append({'step': -1.0})
      start.evaluations.append({'step': -1.0})
      start.log.pop(-2)
      start.evaluations.pop(-2)
    found = saved.restore(start.state, print)
  assert found.log[-1] == found.evaluations[-1] == {'step': 20.0}


def test_other_arrays_than_were_saved_count_as_damage(copy):
  checkpoint = copy.output / 'checkpoints'
  shutil.rmtree(checkpoint / '12' / 'state')
  shutil.copytree(checkpoint / '9' / 'state', checkpoint / '12' / 'state')
  _, text = run(copy)
  assert 'step 12 is damaged: its arrays are not those that were saved' in text
  assert 'Resuming from the checkpoint of step 9' in text


def test_nothing_is_deleted_if_no_checkpoint_can_be_read(copy):
  for step in steps_of(copy):
    damage_arrays(copy, step)
  with pytest.raises(ValueError, match=r'checkpoints \[6, 9, 12\] can be read'):
    run(copy)
  assert steps_of(copy) == [6, 9, 12]


def test_a_finished_run_resumes_to_the_same_end(whole, copy):
  finished, _ = run(copy)
  assert finished
  assert_same_end(copy, whole[0])


def test_another_configuration_is_refused_and_shown(copy):
  before = files(copy.output)
  changed = dataclasses.replace(copy, rho=0.2, steps=24)
  with pytest.raises(
    ValueError, match=r'rho was None and is now 0\.2; steps was 12 and is now'
  ):
    run(changed)
  assert files(copy.output) == before


def test_a_run_from_before_a_flag_goes_on(whole, copy):
  path = copy.output / 'config.json'
  content = json.loads(path.read_text())
  del content['settings']['label_smoothing']
  path.write_text(json.dumps(content))
  damage_arrays(copy, 12)
  finished, _ = run(copy)
  assert finished
  assert_same_end(copy, whole[0])
  with pytest.raises(ValueError, match=r'label_smoothing was 0\.0 and is now'):
    run(dataclasses.replace(copy, label_smoothing=0.1))


def test_resume_needs_a_run(tmp_path):
  config = problems.train_config(resume=True)
  with pytest.raises(ValueError, match='--resume needs --output'):
    run(config)
  missing = dataclasses.replace(config, output=tmp_path / 'missing')
  with pytest.raises(ValueError, match='no such run'):
    run(missing)
  assert not (tmp_path / 'missing').exists()
  with pytest.raises(ValueError, match='not a run'):
    run(dataclasses.replace(config, output=tmp_path))


def test_a_comparison_is_not_resumed(tmp_path):
  output_dir.write_config(tmp_path, 'compare', {})
  with pytest.raises(ValueError, match='not a run'):
    run(problems.train_config(resume=True, output=tmp_path))


def test_an_existing_run_is_not_trained_over(copy):
  before = files(copy.output)
  with pytest.raises(ValueError, match='--overwrite'):
    run(dataclasses.replace(copy, resume=False))
  assert files(copy.output) == before


@pytest.mark.parametrize(
  'dtype', ['float32', 'bfloat16', 'float16', 'int32', 'uint8', 'bool']
)
def test_the_fingerprint_sees_every_bit(dtype):
  leaf = jnp.asarray([0, 1, 0, 0, 1], dtype)
  original = checkpoints._fingerprint({'a': leaf, 'b': jnp.ones(2)})
  for changed in (leaf.at[2].set(leaf[1]), leaf[::-1]):
    other = checkpoints._fingerprint({'a': changed, 'b': jnp.ones(2)})
    assert int(other) != int(original)


def test_the_fingerprint_sees_keys():
  first, second = (
    int(checkpoints._fingerprint({'key': jax.random.key(seed)}))
    for seed in (0, 1)
  )
  assert first != second
