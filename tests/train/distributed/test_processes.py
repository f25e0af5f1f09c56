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
# What collectives print when they connect. Their threads print it in pieces,
# and a piece of one may lie between two pieces of another.
GLOO = (
  r'\[Gloo\] Rank |\d* is connected to |\d* peer ranks\. '
  r'|Expected number of connected peer ranks is : '
)


def free_port():
  with socket.socket() as found:
    found.bind(('127.0.0.1', 0))
    return found.getsockname()[1]


class Started:
  """Running processes, with their output in files."""

  def __init__(self, directory, commands, **environment):
    directory.mkdir(parents=True, exist_ok=True)
    self._outputs = [
      directory / f'output-{index}.txt' for index in range(len(commands))
    ]
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
    """Ends all processes."""
    for process in self.processes:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
      process.wait()

  def output(self, index):
    """Returns the output of a process without messages of its collectives."""
    text = re.sub(GLOO, '', self._outputs[index].read_text())
    return re.sub(r'^\d*\n', '', text, flags=re.MULTILINE)

  def wait_until(self, holds):
    """Waits until a condition holds while both run."""
    deadline = time.monotonic() + TIMEOUT
    while not holds():
      for index, process in enumerate(self.processes):
        assert process.poll() is None, self.output(index)
      assert time.monotonic() < deadline, self.output(0) + self.output(-1)
      time.sleep(0.05)

  def statuses(self):
    """Waits for all to end, and only briefly after the first one."""
    deadline = time.monotonic() + TIMEOUT
    waits = [process.poll for process in self.processes]
    while all(wait() is None for wait in waits):
      assert time.monotonic() < deadline, self.output(0) + self.output(-1)
      time.sleep(0.05)
    return [process.wait(timeout=GRACE) for process in self.processes]

  def finish(self):
    """Waits for all to end with status 0."""
    assert set(self.statuses()) == {0}, self.output(0) + self.output(-1)


def started(directory, config, given=((2, 0), (2, 1)), port=None):
  """Starts `optax-sam train` once for each (--num-processes, --process-id)."""
  where = f'127.0.0.1:{port or free_port()}'
  common = ['-m', 'optax_sam.train.cli', 'train']
  commands = [
    [
      *(*common, '--coordinator', where),
      *('--num-processes', str(count), '--process-id', str(index)),
      *_flags(config),
    ]
    for count, index in given
  ]
  return Started(directory, commands)


def _flags(config):
  """Returns the flags of a configuration; --output and --resume too."""
  found = []
  for field in dataclasses.fields(config):
    value, flag = getattr(config, field.name), field.name.replace('_', '-')
    if value != field.default:
      found += [f'--{flag}'] if value is True else [f'--{flag}', str(value)]
  return found


def listening(port):
  """Returns the addresses at which this machine listens on a port."""
  lines = [
    line.split()
    for name in ('tcp', 'tcp6')
    for line in pathlib.Path('/proc/net', name).read_text().splitlines()[1:]
  ]
  places = [line[1].split(':') for line in lines if line[3] == '0A']
  return {address for address, used in places if int(used, 16) == port}


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
  with Started(
    directory, commands, COORDINATOR=where, SHARED=str(shared)
  ) as pair:
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
  port = free_port()
  with started(tmp_path / 'pair', given, port=port) as pair:
    pair.wait_until((given.output / 'checkpoints' / '5').exists)
    # 127.0.0.1, which IPv6 may contain, and not all interfaces.
    assert {address[-8:] for address in listening(port)} == {'0100007F'}
    os.kill(pair.processes[1].pid, signal.SIGINT)
    assert pair.statuses() == [130, 130], pair.output(0) + pair.output(1)
    last = steps_of(given)[-1]
    assert f'Interrupted after step {last} of 150' in pair.output(0)
  assert 5 <= last < 150
  resume(given)
  logged = [row['step'] for row in metrics(given) if row['kind'] == 'log']
  assert logged == list(range(1, given.steps + 1))


def assert_accident(pair, sent, index):
  """Raises unless an accident of one process ends both, each with one line."""
  os.kill(pair.processes[index].pid, sent)
  status = pair.processes[1 - index].wait(timeout=GRACE)
  os.kill(pair.processes[index].pid, signal.SIGCONT)
  assert 0 not in (status, pair.processes[index].wait(timeout=GRACE))
  time.sleep(0.5)  # for the last line after an abort
  for one in (0, 1):
    expected = rf'process {one} of 2 has ended early: .* with --resume'
    assert_one_line(pair.output(one), expected)


def assert_one_line(text, expected):
  """Raises unless an output has one line of errors, and no log of C++."""
  resumed = 'Resuming from the checkpoint of step'
  lines = [
    line
    for line in text.splitlines()
    if line not in ('', 'Compiling', 'Training') and resumed not in line
  ]
  assert len(lines) == 1, text
  assert re.match(f'optax-sam: error: {expected}', lines[0]), text


ABSENT = r'--coordinator \S+: the processes did not connect within 40 seconds'
TAKEN = r'--coordinator \S+: process 0 cannot listen there: Address already in'
COUNT = 'all processes must be given the same --num-processes: it is 2 in proc'


def test_processes_that_do_not_fit_end_within_a_minute(tmp_path):
  cases = {
    'port in use': ([(2, 0), (2, 1)], [TAKEN, ABSENT]),
    'first number twice': ([(2, 0), (2, 0)], [f'({TAKEN}|{ABSENT})'] * 2),
    'number twice': ([(3, 0), (3, 1), (3, 1)], [ABSENT] * 3),
    'another count': ([(2, 0), (3, 1)], [COUNT] * 2),
    'too few': ([(2, 0)], [ABSENT]),
    'without the first': ([(2, 1)], [ABSENT]),
  }
  with contextlib.ExitStack() as stack:
    server = stack.enter_context(socket.create_server(('127.0.0.1', 0)))
    running = {}
    for name, (given, _) in cases.items():
      port = server.getsockname()[1] if name == 'port in use' else None
      config = problems.train_config(output=tmp_path / f'{name} run')
      one = started(tmp_path / name, config, given, port)
      running[name] = stack.enter_context(one)
    deadline = time.monotonic() + GRACE + 30  # starting all of them at once
    for name, (_, expected) in cases.items():
      for index, line in enumerate(expected):
        left = max(0.1, deadline - time.monotonic())
        assert running[name].processes[index].wait(left) != 0, name
        time.sleep(0.5)
        assert_one_line(running[name].output(index), line)
  assert not list(tmp_path.glob('* run'))


# Kills of one process, and of two beside the accidents: a third of them while
# the processes start, the first one too.
KILLS = int(os.environ.get('KILLS', '1'))
ACCIDENTS = [
  (sent, index) for sent in (signal.SIGKILL, signal.SIGSTOP) for index in (0, 1)
]


@pytest.mark.parametrize(
  ('count', 'kills', 'accidents'),
  [(1, 8 * KILLS, []), (2, KILLS, ACCIDENTS)],
)
def test_kills_and_accidents_change_nothing(count, kills, accidents, tmp_path):
  chance = random.Random(count)
  given = problems.train_config(
    method='ae_look_sam',
    output=tmp_path / 'run',
    **(LONG | {'steps': 200 + 40 * KILLS}),
  )

  def start(name):
    config = dataclasses.replace(
      given, resume=(given.output / 'config.json').exists()
    )
    if count == 2:
      return started(tmp_path / name, config)
    command = ['-m', 'optax_sam.train.cli', 'train', *_flags(config)]
    return Started(tmp_path / name, [command])

  def is_further_than(steps):
    return set(train.saved_steps(given.output)) - set(steps)

  for number, (sent, index) in enumerate(accidents):
    saved = train.saved_steps(given.output)
    with start(f'accident {number}') as running:
      running.wait_until(lambda saved=saved: is_further_than(saved))
      time.sleep(chance.uniform(0, 0.3))  # possibly during a write
      assert_accident(running, sent, index)
    assert not (given.output / 'metrics.jsonl').exists()
  for number in range(kills):
    with start(str(number)) as running:
      if number % 3:  # while it starts or resumes, or while it trains
        running.wait_until(lambda: 'Training' in running.output(0))
      time.sleep(chance.uniform(0, 0.3 if number % 3 else 4))
      running.processes[chance.randrange(count)].kill()
      is_finished = 0 in running.statuses()  # before the signal
      for index in range(count):
        assert 'Traceback' not in running.output(index)
    if is_finished:
      break
  assert number > 2 or accidents
  with start('last') as running:
    running.finish()
  given.output.rename(tmp_path / 'killed')
  with start('whole') as running:
    running.finish()
  assert_same_end(dataclasses.replace(given, output=tmp_path / 'killed'), given)
