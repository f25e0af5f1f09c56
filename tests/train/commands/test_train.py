import dataclasses
import json
import math
import os
import shutil
import signal

import pytest

from optax_sam.train.commands import train
from optax_sam.train.config import output_dir
from optax_sam.train.loop.trainer import Trainer
from tests.train import problems
from tests.train.runs import (
  arrays,
  assert_same_end,
  call,
  damage,
  files,
  interrupt,
  metrics,
  resume,
  run,
  steps_of,
)

pytestmark = pytest.mark.usefixtures('quick_eigenvalues')


@pytest.fixture(scope='module')
def whole(tmp_path_factory, quick_eigenvalues):
  """An uninterrupted run of a method with a key in its state."""
  del quick_eigenvalues
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


def test_a_run_writes_three_checkpoints_and_metrics(whole):
  config, text = whole
  assert steps_of(config) == [6, 9, 12]
  kinds = [row['kind'] for row in metrics(config)]
  assert kinds == ['log'] * 12 + ['evaluation'] * 2 + ['sharpness']
  assert problems.names(config.output) == train.FILES
  assert 'steps took a perturbed gradient' in text


def test_resume_is_bit_identical(whole, tmp_path):
  first = dataclasses.replace(whole[0], output=tmp_path / 'run')
  assert 'Interrupted after step 7 of 12' in interrupt(first, 7)
  assert not (first.output / 'metrics.jsonl').exists()
  assert 'Resuming from the checkpoint of step 7' in resume(first)
  assert_same_end(first, whole[0])


@pytest.fixture(scope='module')
def following(tmp_path_factory, quick_eigenvalues):
  """An uninterrupted run with a setting that depends on the accuracy."""
  del quick_eigenvalues
  config = problems.train_config(
    method='ordered_sgd',
    steps=40,
    batch_size=100,  # epochs end at 10, 20, 30
    output=tmp_path_factory.mktemp('train') / 'following',
  )
  assert run(config)[0]
  values = [row['setting_k'] for row in arrays(config)[0].log]
  assert values[:20] == [1.0] * 20
  assert values[20] < 1
  return config


@pytest.mark.slow
@pytest.mark.parametrize(
  ('step', 'sent'), [(20, signal.SIGINT), (24, signal.SIGTERM)]
)
def test_resume_restores_a_setting_that_depends_on_accuracy(
  step, sent, following, tmp_path
):
  config = dataclasses.replace(following, output=tmp_path / 'run')
  interrupt(config, step, sent)
  assert f'Resuming from the checkpoint of step {step}' in resume(config)
  assert_same_end(config, following)


@pytest.mark.slow
def test_a_second_ctrl_c_saves_no_partial_step(
  following, tmp_path, monkeypatch
):
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
  assert 'Resuming from the checkpoint of step 18' in resume(config)
  assert_same_end(config, following)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(whole, copy):
  damage(copy, 12)
  text = resume(copy)
  assert 'The checkpoint of step 12 is damaged' in text
  assert 'Resuming from the checkpoint of step 9' in text
  assert_same_end(copy, whole[0])


def test_a_checkpoint_with_changed_arrays_is_damaged(copy):
  checkpoint = copy.output / 'checkpoints'
  shutil.rmtree(checkpoint / '12' / 'state')
  shutil.copytree(checkpoint / '9' / 'state', checkpoint / '12' / 'state')
  text = resume(copy)
  assert 'step 12 is damaged: it differs from what was saved' in text
  assert 'Resuming from the checkpoint of step 9' in text


def test_nothing_is_deleted_if_no_checkpoint_can_be_read(copy):
  for step in steps_of(copy):
    damage(copy, step)
  with pytest.raises(ValueError, match=r'checkpoints \[6, 9, 12\] can be read'):
    run(copy)
  assert steps_of(copy) == [6, 9, 12]


def test_resume_with_another_configuration_raises_and_lists_differences(copy):
  before = files(copy.output)
  changed = dataclasses.replace(copy, rho=0.2, steps=24)
  with pytest.raises(
    ValueError, match=r'rho was None and is now 0\.2; steps was 12 and is now'
  ):
    run(changed)
  with pytest.raises(ValueError, match='--overwrite'):
    run(dataclasses.replace(copy, resume=False))
  assert files(copy.output) == before


def test_a_run_older_than_a_flag_resumes_with_its_default(whole, copy):
  path = copy.output / 'config.json'
  content = json.loads(path.read_text())
  del content['settings']['label_smoothing']
  path.write_text(json.dumps(content))
  resume(copy)
  assert_same_end(copy, whole[0])
  with pytest.raises(ValueError, match=r'label_smoothing was 0\.0 and is now'):
    run(dataclasses.replace(copy, label_smoothing=0.1))


@pytest.mark.parametrize(('step', 'saved'), [(1, ''), (8, '3, 6')])
def test_a_run_that_diverges_exits_with_1_and_says_what_is_on_disk(
  step, saved, tmp_path, capsys, monkeypatch
):
  original = Trainer._log_row

  def row(self, progress, metrics):
    lost = {'loss': math.nan} if progress.step >= step else {}
    return original(self, progress, metrics) | lost

  monkeypatch.setattr(Trainer, '_log_row', row)
  output = tmp_path / 'run'
  flags = {
    '--model': 'mlp',
    '--steps': 12,
    '--batch-size': 50,
    '--log-every': 1,
    '--checkpoint-every': 3,
    '--output': output,
  }
  status = call('train', *(part for flag in flags.items() for part in flag))
  assert status == 1
  line = capsys.readouterr().err
  assert line.count('\n') == 1
  at = (
    f'sam diverged at step {step + 1} of 12: the loss is not finite; {output}'
  )
  assert at in line
  checkpoints = f'checkpoints of steps {saved};' if saved else 'no checkpoint;'
  assert f'metrics.jsonl up to this step and {checkpoints}' in line
  rows = metrics(dataclasses.replace(problems.train_config(), output=output))
  assert rows[-1]['kind'] == 'diverged'
  assert rows[-1]['reason'] == 'the loss is not finite'
  assert rows[-2]['step'] == step + 1  # it is evaluated before it stops
  assert not any(row['kind'] == 'sharpness' for row in rows)


def test_resume_needs_a_run_of_this_command(tmp_path):
  config = problems.train_config(resume=True)
  with pytest.raises(ValueError, match='--resume needs --output'):
    run(config)
  missing = dataclasses.replace(config, output=tmp_path / 'missing')
  with pytest.raises(ValueError, match='there is no run'):
    run(missing)
  assert not (tmp_path / 'missing').exists()
  with pytest.raises(ValueError, match='not a run'):
    run(dataclasses.replace(config, output=tmp_path))
  output_dir.write_config(tmp_path, 'compare', {})
  with pytest.raises(ValueError, match='not a run'):
    run(dataclasses.replace(config, output=tmp_path))
