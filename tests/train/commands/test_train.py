import dataclasses
import json
import math
import os
import shutil
import signal
import time

import pytest

from optax_sam.train.commands import train
from optax_sam.train.config import output_dir
from optax_sam.train.loop.trainer import Trainer
from optax_sam.train.optimizers import base_optimizer
from tests.train import problems
from tests.train.runs import (
  assert_same_end,
  call,
  damage,
  files,
  interrupt,
  metrics,
  refused,
  resume,
  run,
  steps_of,
)

pytestmark = pytest.mark.usefixtures('quick_eigenvalues', 'muted')


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


@pytest.mark.slow
@pytest.mark.parametrize(
  ('pause', 'kept'),
  [(0, 8), (0.6, 6)],  # sent twice; pressed twice
)
def test_a_second_ctrl_c_saves_no_partial_step(
  pause, kept, whole, tmp_path, monkeypatch
):
  original = Trainer._log_row

  def row(self, progress, metrics):
    if progress.step == 8:
      os.kill(os.getpid(), signal.SIGINT)
      time.sleep(pause)
      os.kill(os.getpid(), signal.SIGINT)
    return original(self, progress, metrics)

  config = dataclasses.replace(whole[0], output=tmp_path / 'run')
  monkeypatch.setattr(Trainer, '_log_row', row)
  assert not run(config)[0]
  monkeypatch.undo()
  text = resume(config)
  assert f'Resuming from the checkpoint of step {kept}' in text
  assert_same_end(config, whole[0])


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
  changed = dataclasses.replace(copy, rho=0.2, steps=6)
  with pytest.raises(
    ValueError, match=r'rho was None and is now 0\.2; steps was 12 and can only'
  ):
    run(changed)
  with pytest.raises(ValueError, match='--overwrite'):
    run(dataclasses.replace(copy, resume=False))
  assert files(copy.output) == before


def test_resume_takes_all_settings_from_the_run(whole, copy, capsys):
  for name in ('metrics.jsonl', 'report.html', 'checkpoints/12'):
    path = copy.output / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
  assert call('train', '--output', copy.output, '--resume') == 0
  assert 'Resuming from the checkpoint of step 9' in capsys.readouterr().out
  assert_same_end(copy, whole[0])
  agreeing = ('--method', 'SS-SAM', '--model', 'mlp', '--checkpoint-every', 3)
  assert call('train', '--output', copy.output, '--resume', *agreeing) == 0
  capsys.readouterr()
  different = ('--output', copy.output, '--resume', '--method', 'sam')
  error = refused(capsys, 'train', *different)
  assert "method was 'ss_sam' and is now 'sam'" in error
  # The default of a flag is refused too if it is given.
  config = output_dir.read_config(copy.output)
  config['settings']['warmup'] = 0.2
  output_dir.write_config(copy.output, 'train', config['settings'])
  different = ('--output', copy.output, '--resume', '--warmup', 0.1)
  assert 'warmup was 0.2 and is now 0.1' in refused(capsys, 'train', *different)


def test_more_steps_prolong_a_finished_run_on_the_longer_schedule(copy, capsys):
  prolong = ('train', '--output', copy.output, '--resume', '--steps')
  assert 'can only grow' in refused(capsys, *prolong, 6)
  assert call(*prolong, 24) == 0
  assert 'Resuming from the checkpoint of step 12' in capsys.readouterr().out
  rows = [row for row in metrics(copy) if row['kind'] == 'log']
  assert [row['step'] for row in rows] == list(range(1, 25))
  schedule = base_optimizer.schedule(dataclasses.replace(copy, steps=24))
  for row in rows[12:]:
    expected = float(schedule(row['step'] - 1))
    assert row['learning_rate'] == pytest.approx(expected)
  assert output_dir.read_config(copy.output)['settings']['steps'] == 24
  assert call('train', '--output', copy.output, '--resume') == 0


def test_a_live_run_is_not_touched(copy, capsys):
  before = files(copy.output)
  with output_dir.locked(copy.output):
    for how in ('--resume', '--overwrite'):
      error = refused_late(capsys, 'train', '--output', copy.output, how)
      assert 'is being written by another optax-sam' in error
  assert files(copy.output) == before


def refused_late(capsys, *arguments):
  """Returns the error of a command that has printed its first lines."""
  assert call(*arguments) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1
  return error


@pytest.mark.parametrize(
  'name', ['checkpoints', 'metrics.jsonl', 'report.html']
)
def test_a_file_of_the_wrong_type_is_refused_first(name, copy, capsys):
  path = copy.output / name
  if path.is_dir():
    shutil.rmtree(path)
    path.touch()
  else:
    path.unlink()
    path.mkdir()
  for how in ('--resume', '--overwrite'):
    assert name in refused(capsys, 'train', '--output', copy.output, how)


@pytest.mark.parametrize('method', ['compile', 'measure_sharpness'])
@pytest.mark.parametrize('sent', [signal.SIGINT, signal.SIGTERM])
def test_after_an_interrupt_at_any_time_a_run_says_how_to_continue(
  method, sent, whole, tmp_path, monkeypatch
):
  config = dataclasses.replace(whole[0], output=tmp_path / 'run')

  def interrupted(*_):
    os.kill(os.getpid(), sent)

  monkeypatch.setattr(Trainer, method, interrupted)
  former = signal.signal(signal.SIGTERM, signal.default_int_handler)
  try:
    finished, text = run(config)
  finally:
    signal.signal(signal.SIGTERM, former)
  assert not finished
  on_disk = 'no checkpoint' if method == 'compile' else 'steps 6, 9, 12'
  last = text.splitlines()[-1]
  assert last.startswith('Interrupted after step')
  assert on_disk in last
  assert f'optax-sam train --output {config.output} --resume' in last
  monkeypatch.undo()
  resume(config)
  assert_same_end(config, whole[0])


def test_a_failure_before_the_first_step_leaves_nothing(tmp_path, monkeypatch):
  config = problems.train_config(output=tmp_path / 'new' / 'run')
  monkeypatch.setattr(Trainer, 'compile', lambda *_: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    run(config)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', ['a\\b', 'a[b]', 'a*', 'a\x1b[31m', 'a\udcff'])
def test_a_path_that_the_storage_would_alter_is_refused(
  name, tmp_path, capsys, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  error = refused(capsys, 'train', '--output', name)
  assert error.rstrip('\n').isprintable()
  assert not list(tmp_path.iterdir())


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
def test_a_run_that_diverges_exits_with_1_and_names_the_saved_files(
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
