import contextlib
import dataclasses
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from optax_sam.train.commands import train
from tests import compiling
from tests.train import problems
from tests.train.runs import (
  arrays,
  assert_same_end,
  interrupt,
  metrics,
  resume,
  run,
  steps_of,
)

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[3]
# Timeout for work of less than a minute on an idle machine.
TIMEOUT = 900
# Timeout from the end of the first process to that of the second one.
GRACE = 60


def free_port():
  with socket.socket() as found:
    found.bind(('127.0.0.1', 0))
    return found.getsockname()[1]


class Pair:
  """Two running processes, with their output in files."""

  def __init__(self, directory, commands, **environment):
    directory.mkdir(parents=True, exist_ok=True)
    self._outputs = [directory / f'output-{index}.txt' for index in (0, 1)]
    self.processes = []
    for index, path in enumerate(self._outputs):
      with path.open('wb') as output:
        self.processes.append(
          subprocess.Popen(
            [sys.executable, *commands[index]],
            cwd=ROOT,
            env=_environment() | {'PROCESS': str(index)} | environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
          )
        )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    """Ends both processes."""
    for process in self.processes:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
      process.wait()

  def output(self, index):
    """Returns the output of a process without messages of its collectives."""
    lines = self._outputs[index].read_text().splitlines(keepends=True)
    return ''.join(line for line in lines if '[Gloo]' not in line)

  def wait_until(self, holds):
    """Waits until a condition holds while both run."""
    deadline = time.monotonic() + TIMEOUT
    while not holds():
      for index, process in enumerate(self.processes):
        assert process.poll() is None, self.output(index)
      assert time.monotonic() < deadline, self.output(0) + self.output(1)
      time.sleep(0.05)

  def statuses(self):
    """Waits for both to end, and only briefly for the second one."""
    deadline = time.monotonic() + TIMEOUT
    waits = [process.poll for process in self.processes]
    while all(wait() is None for wait in waits):
      assert time.monotonic() < deadline, self.output(0) + self.output(1)
      time.sleep(0.05)
    return [process.wait(timeout=GRACE) for process in self.processes]

  def finish(self):
    """Waits for both to end with status 0."""
    assert self.statuses() == [0, 0], self.output(0) + self.output(1)


def started(directory, config):
  """Starts `optax-sam train` in two processes."""
  where = f'127.0.0.1:{free_port()}'
  common = ['-m', 'optax_sam.train.cli', 'train', '--coordinator', where]
  commands = [
    [*common, '--num-processes', '2', '--process-id', index, *_flags(config)]
    for index in ('0', '1')
  ]
  return Pair(directory, commands)


def _flags(config):
  """Returns the flags of a configuration; --output and --resume too."""
  found = []
  for field in dataclasses.fields(config):
    value, flag = getattr(config, field.name), field.name.replace('_', '-')
    if value != field.default:
      found += [f'--{flag}'] if value is True else [f'--{flag}', str(value)]
  return found


def run_tests(directory, file):
  """Runs the tests of a file in two processes; returns their statuses.

  They find each other by COORDINATOR and PROCESS.
  """
  tests = ['-m', 'pytest', '-x', '-p', 'no:cacheprovider', '-p', 'no:xdist']
  commands = [
    [*tests, f'--basetemp={directory / str(index)}', file] for index in (0, 1)
  ]
  shared = directory / 'shared'
  shared.mkdir(parents=True)
  where = f'127.0.0.1:{free_port()}'
  with Pair(directory, commands, COORDINATOR=where, SHARED=str(shared)) as pair:
    pair.finish()
    return [pair.output(0), pair.output(1)]


def _environment():
  own = compiling.environment() | {'JAX_NUM_CPU_DEVICES': '2'}
  inherited = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith('PYTEST_')
  }
  return inherited | own


# Five steps between checkpoints, far from the end.
LONG = {'steps': 150, 'log_every': 1, 'checkpoint_every': 5, 'batch_size': 48}


def test_tests_pass_in_two_processes(tmp_path):
  file = 'tests/train/distributed/two_processes.py'
  for text in run_tests(tmp_path, file):
    assert int(re.search(r'(\d+) passed', text)[1]) >= 13
    assert 'skipped' not in text


def test_a_run_of_one_process_resumes_in_two(tmp_path):
  # Four devices divide a batch of 52, the eight of this process don't.
  whole = problems.train_config(output=tmp_path / 'whole', batch_size=52)
  assert run(whole)[0]
  given = dataclasses.replace(whole, output=tmp_path / 'run')
  interrupt(given, 7)
  again = dataclasses.replace(given, resume=True, mesh='data=2,fsdp=2')
  with started(tmp_path / 'pair', again) as pair:
    pair.finish()
    assert 'Resuming from the checkpoint of step 7' in pair.output(0)
    assert 'Run: ' in pair.output(0)
    assert pair.output(1) == ''
  found, expected = arrays(given), arrays(whole)
  for one, other in zip(found[1], expected[1], strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
  for one, other in zip(found[0].log, expected[0].log, strict=True):
    assert one == pytest.approx(other, rel=1e-3, nan_ok=True)
  assert steps_of(given) == [7, 9, 12]
  assert problems.names(given.output) == train.FILES


def test_ctrl_c_in_one_process_stops_both_after_the_same_step(tmp_path):
  given = problems.train_config(output=tmp_path / 'run', **LONG)
  with started(tmp_path / 'pair', given) as pair:
    pair.wait_until((given.output / 'checkpoints' / '5').exists)
    os.kill(pair.processes[1].pid, signal.SIGINT)
    assert pair.statuses() == [130, 130], pair.output(0) + pair.output(1)
    last = steps_of(given)[-1]
    assert f'Interrupted after step {last} of 150' in pair.output(0)
  assert 5 <= last < 150
  resume(given)
  logged = [row['step'] for row in metrics(given) if row['kind'] == 'log']
  assert logged == list(range(1, given.steps + 1))


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """An uninterrupted run in two processes, of a method with a state."""
  directory = tmp_path_factory.mktemp('whole')
  given = problems.train_config(
    method='ae_look_sam', output=directory / 'run', **LONG
  )
  with started(directory / 'pair', given) as pair:
    pair.finish()
  return given


@pytest.mark.parametrize('killed', [0, 1])
def test_a_killed_run_ends_and_resumes_bit_identically(killed, whole, tmp_path):
  given = dataclasses.replace(whole, output=tmp_path / 'run')
  with started(tmp_path / 'pair', given) as pair:
    pair.wait_until((given.output / 'checkpoints' / '5').exists)
    time.sleep(random.uniform(0, 1))  # possibly during a write
    os.kill(pair.processes[killed].pid, signal.SIGKILL)
    statuses = pair.statuses()
    left = pair.output(1 - killed)
  assert statuses[killed] == -signal.SIGKILL
  assert statuses[1 - killed] not in (0, None), left
  assert f'process {killed} of 2 has ended' in left
  assert not (given.output / 'metrics.jsonl').exists()
  again = dataclasses.replace(given, resume=True)
  with started(tmp_path / 'again', again) as pair:
    pair.finish()
  assert_same_end(given, whole)
