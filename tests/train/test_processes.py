"""Runs of several processes, on two devices each."""

import dataclasses
import io
import json
import os
import random
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from optax_sam.train import cli
from optax_sam.train.commands import train
from optax_sam.train.config import configs
from tests.train import kills, pairs, problems
from tests.train.test_single import arrays, interrupt_at, steps_of

STRICT = False  # Flax promotes ranks

# With five steps from one checkpoint to the next, and far from the end.
LONG = {'steps': 150, 'log_every': 1, 'checkpoint_every': 5, 'batch_size': 48}


TWO = '--num-processes 2 --process-id'


@pytest.mark.parametrize('index', ['0', '1'])
def test_a_process_that_nobody_meets_ends(index):
  where = f'127.0.0.1:{pairs.free_port()}'
  program = (
    'import sys; from optax_sam.train import cli; '
    'from optax_sam.train.distributed import processes; '
    'processes._MEETING_SECONDS = 2; cli.main(sys.argv[1:])'
  )
  command = ['train', '--coordinator', where, *TWO.split(), index]
  ended = subprocess.run(
    [sys.executable, '-c', program, *command],
    capture_output=True,
    text=True,
    timeout=pairs.TIMEOUT,
    check=False,
  )
  assert ended.returncode == 1
  assert 'the other processes did not come within 2 seconds' in ended.stderr
  assert ended.stderr.count('\n') == 1
  assert ended.stdout == ''


def test_in_two_processes(tmp_path):
  statuses, outputs = pairs.run_tests(tmp_path, 'tests/train/two_processes.py')
  assert statuses == [0, 0], outputs[0] + outputs[1]
  for text in outputs:
    assert int(re.search(r'(\d+) passed', text)[1]) >= 25
    assert 'skipped' not in text


def train_config(tmp_path, **changes):
  return problems.train_config(output=tmp_path / 'run', **changes)


def flags(given):
  """Returns the flags of a configuration; --output and --resume too."""
  found = []
  for field in dataclasses.fields(given):
    value, name = getattr(given, field.name), field.name.replace('_', '-')
    if value != field.default:
      found += [f'--{name}'] if value is True else [f'--{name}', str(value)]
  return found


def finish_alone(given):
  alone = dataclasses.replace(given, resume=True)
  assert train.run(alone, Console(file=io.StringIO()))
  rows = [
    json.loads(line)
    for line in (given.output / 'metrics.jsonl').read_text().splitlines()
  ]
  logged = [row['step'] for row in rows if row['kind'] == 'log']
  assert logged == list(range(1, given.steps + 1))


def test_a_run_of_one_process_is_finished_by_two(tmp_path, monkeypatch):
  whole = train_config(tmp_path / 'whole', batch_size=48)
  assert train.run(whole, Console(file=io.StringIO()))
  given = train_config(tmp_path, batch_size=48)
  interrupt_at(monkeypatch, 7)
  assert not train.run(given, Console(file=io.StringIO()))
  monkeypatch.undo()
  given = dataclasses.replace(given, resume=True, mesh='data=2,fsdp=2')
  with pairs.train(tmp_path / 'pair', *flags(given)) as pair:
    assert pair.statuses() == [0, 0], pair.output(0) + pair.output(1)
    assert 'Resuming from the checkpoint of step 7' in pair.output(0)
    assert 'Run: ' in pair.output(0)
    assert pair.output(1) == ''
  progress, found = arrays(given)
  expected_progress, expected = arrays(whole)
  for one, other in zip(found, expected, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
  assert steps_of(given) == [7, 9, 12]
  for one, other in zip(progress.log, expected_progress.log, strict=True):
    assert one == pytest.approx(other, rel=1e-3, nan_ok=True)
  assert problems.names(given.output) == train.FILES


def test_ctrl_c_in_one_process_stops_both_after_the_same_step(tmp_path):
  given = train_config(tmp_path, **LONG)
  with pairs.train(tmp_path / 'pair', *flags(given)) as pair:
    pair.wait_until((given.output / 'checkpoints' / '5').exists)
    os.kill(pair.processes[1].pid, signal.SIGINT)
    assert pair.statuses() == [130, 130], pair.output(0) + pair.output(1)
    last = steps_of(given)[-1]
    assert f'Interrupted after step {last} of 150' in pair.output(0)
  assert 5 <= last < 150
  finish_alone(given)


@pytest.mark.parametrize('killed', [0, 1])
def test_a_killed_process_takes_the_other_with_it(killed, tmp_path):
  given = train_config(tmp_path, **LONG)
  with pairs.train(tmp_path / 'pair', *flags(given)) as pair:
    pair.wait_until((given.output / 'checkpoints' / '5').exists)
    os.kill(pair.processes[killed].pid, signal.SIGKILL)
    statuses = pair.statuses()
    left = pair.output(1 - killed)
  assert statuses[killed] == -signal.SIGKILL
  assert statuses[1 - killed] not in (0, None), left
  assert f'process {killed} of 2 has ended' in left
  assert not (given.output / 'metrics.jsonl').exists()
  finish_alone(given)


@pytest.mark.parametrize(
  ('arguments', 'named'),
  [
    ('--coordinator here:1', '--num-processes and --process-id is missing'),
    ('--num-processes 2 --process-id 0', '--coordinator is missing'),
    ('--distributed --process-id 0', '--distributed finds the other'),
    (f'--coordinator here {TWO} 0', "'here' must read HOST:PORT"),
    (f'--coordinator :1 {TWO} 0', "':1' must read HOST:PORT"),
    (f'--coordinator here:0 {TWO} 0', "'here:0' must read HOST:PORT"),
    (f'--coordinator here:1 {TWO} 2', '--process-id must be below 2, not 2'),
    (f'--coordinator here:1 {TWO} -1', '--process-id must be at least 0'),
    (f'--coordinator here:1 {TWO} 0 --steps 0', '--steps must be at least 1'),
    (f'--coordinator here:1 {TWO} 0 --mesh x=4', "'x=4' must be data or fsdp"),
    ('--steps 300 --epochs 2', '--steps and --epochs both give the length'),
  ],
)
def test_what_is_known_alone_is_refused_before_anybody_is_waited_for(
  arguments, named, capsys
):
  with pytest.raises(SystemExit) as stop:
    cli.main(['train', *arguments.split()])
  assert stop.value.code == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1
  assert named in error


def test_the_processes_are_no_settings_of_a_run():
  given = configs.TrainConfig(
    coordinator='here:1', num_processes=2, process_id=1, mesh='fsdp=4'
  )
  other = configs.TrainConfig(distributed=True)
  assert configs.settings(given) == configs.settings(other)


def test_a_run_that_is_killed_ends_as_one_that_is_not(tmp_path):
  assert kills.survive(tmp_path, 'ae_look_sam', 1, random.Random(0), steps=60)
