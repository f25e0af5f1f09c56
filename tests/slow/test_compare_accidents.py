"""Comparisons that are killed, stopped, or cannot write, at any moment.

One process imports everything and forks a process for each command, which saves
the seconds of the start.
"""

import contextlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from optax_sam.train.comparison import store
from tests import compiling
from tests.train import problems
from tests.train.comparison.test_runs import assert_same

pytestmark = pytest.mark.slow

PROGRAM = """
import json, os, resource, signal, sys, time, traceback
from optax_sam import sharpness
from optax_sam.train import cli
from optax_sam.train.commands import compare
from optax_sam.train.config import arguments

sharpness.top_eigenvalue = lambda *_, **__: 7.0

def command(job):
  count, closed = 0, job.get('closed')
  def hook(event, found):
    nonlocal count
    path = found[0] if found else ''
    writes = event.startswith('os.') or (event == 'open' and found[2] & 3)
    if not writes or job['target'] not in str(path):
      return
    count += 1
    if count == job.get('event'):
      os.kill(os.getpid(), job['signal'])
  for number, name in ((1, 'out'), (2, 'err')):
    with open(job[name], 'wb') as file:
      os.dup2(file.fileno(), number)
  if closed:
    reading, writing = os.pipe()
    os.close(reading)
    os.dup2(writing, 1)
  if job.get('limit') is not None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (job['limit'], -1))
  sys.addaudithook(hook)
  sys.argv[1:] = job['arguments']
  status = 1
  try:
    cli.main()
  except SystemExit as stop:
    status = stop.code
  except BaseException:
    traceback.print_exc()
  finally:
    # The command has ended: a late signal is not its matter.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
    with open(job['out'] + '.count', 'w') as file:
      file.write(str(count))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

running = {}
for line in sys.stdin:
  job = json.loads(line)
  if 'wait' not in job:
    found = os.fork() or command(job)
  else:
    status = os.waitpid(job['wait'], 0)[1]
    found = os.waitstatus_to_exitcode(status)
  print(found, flush=True)
"""


class Runner:
  """Starts the command `compare` in new processes."""

  def __init__(self, directory: pathlib.Path, process: subprocess.Popen):
    self.directory, self.process, self.started = directory, process, 0

  def start(self, target, **how):
    """Starts a command; returns its number and the start of its logs."""
    log = str(self.directory / f'log{self.started}')
    self.started += 1
    arguments = ['compare', '--methods', 'sam', '--seeds', '2', '--steps', '6']
    for name, value in problems.SMALL.items():
      if name != 'steps':
        arguments += [f'--{name.replace("_", "-")}', str(value)]
    arguments += ['--timing-rounds', '0', '--output', str(target)]
    job = {'arguments': arguments, 'target': str(target), **how}
    return self._ask(job | {'out': f'{log}.out', 'err': f'{log}.err'}), log

  def wait(self, number, log):
    """Returns the exit status, the output and the errors of a command."""
    status = self._ask({'wait': number})
    texts = [pathlib.Path(f'{log}.{x}').read_text() for x in ('out', 'err')]
    return status, *texts

  def run(self, target, *, after=None, **how):
    """Runs a command, which gets the signal after some seconds."""
    number, log = self.start(target, **how)
    if after is not None:
      for pause in (after, 0.05):  # Ctrl-C is often pressed twice
        time.sleep(pause)
        with contextlib.suppress(ProcessLookupError):
          os.kill(number, how['signal'])
    return self.wait(number, log)

  def events(self):
    """Returns the number of changes of files in the last command."""
    return int(
      (self.directory / f'log{self.started - 1}.out.count').read_text()
    )

  def _ask(self, job):
    self.process.stdin.write(json.dumps(job) + '\n')
    self.process.stdin.flush()
    return int(self.process.stdout.readline())


@pytest.fixture(scope='module')
def runner(tmp_path_factory):
  root = pathlib.Path(__file__).parents[2]
  with subprocess.Popen(
    [sys.executable, '-W', 'ignore', '-c', PROGRAM],
    cwd=root,
    env=os.environ | compiling.environment(),
    text=True,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  ) as process:
    yield Runner(tmp_path_factory.mktemp('logs'), process)
    process.stdin.close()


@pytest.fixture(scope='module')
def whole(runner, tmp_path_factory):
  """A comparison without accidents, and its number of changes of files."""
  target = tmp_path_factory.mktemp('whole') / 'out'
  assert runner.run(target)[0] == 0
  return store.read(target), runner.events()


def assert_whole(target, whole):
  assert_same(store.read(target), whole[0])
  assert problems.names(target) == store.FILES - {'trials'}
  assert len(problems.names(target / 'runs')) == 4


@pytest.mark.parametrize(
  ('sent', 'times'),
  [(signal.SIGKILL, 9), (signal.SIGTERM, 4), (signal.SIGINT, 4)],
)
def test_the_same_command_continues_after_a_signal_at_any_moment(
  runner, whole, tmp_path, sent, times
):
  choose, stopped, number = random.Random(0), 0, 0
  while stopped < times:
    target = tmp_path / str(number)
    how = {'signal': sent}
    if choose.random() < 0.6:
      how['event'] = choose.randint(1, whole[1])
    else:
      how['after'] = choose.uniform(0, 5)
    status, out, err = runner.run(target, **how)
    if status == 0:
      assert_whole(target, whole)
      number += 1
      continue
    stopped += 1
    if sent == signal.SIGKILL:
      assert status == -sent, err
      continue
    assert status == 130, err
    if err:  # before the start, or it has removed the output
      assert err == 'optax-sam: error: interrupted, nothing was written\n'
      continue
    runs = len(list((target / 'runs').glob('[!.]*.json')))
    assert f'{runs} finished run' in out.splitlines()[-1]
    assert 'repeat the command to continue' in out.splitlines()[-1]
  target = tmp_path / str(number)
  assert runner.run(target)[0] == 0
  assert_whole(target, whole)


@pytest.mark.parametrize('limit', [500, 7500, 60_000])
def test_a_full_disk_gives_one_line_and_loses_no_finished_run(
  runner, whole, tmp_path, limit
):
  target = tmp_path / 'out'
  status, out, err = runner.run(target, limit=limit)
  assert status == 2
  assert err.count('\n') == 1
  assert str(target) in err
  assert target.exists() == ('to continue' in out)
  if limit == 60_000:
    assert '4 finished runs' in out.splitlines()[-1]
  assert runner.run(target)[0] == 0
  assert_whole(target, whole)


def test_of_two_commands_with_one_output_the_second_is_refused(
  runner, whole, tmp_path
):
  target = tmp_path / 'out'
  both = [runner.start(target), runner.start(target)]
  ends = [runner.wait(*one) for one in both]
  assert sorted(status for status, *_ in ends) == [0, 2]
  refused = max(ends)
  assert refused[2].count('\n') == 1
  assert 'is being written by another optax-sam' in refused[2]
  assert_whole(target, whole)


def test_a_closed_standard_output_does_not_end_a_run(runner, whole, tmp_path):
  status, _, err = runner.run(tmp_path / 'out', closed=True)
  assert (status, err) == (0, '')
  assert_whole(tmp_path / 'out', whole)


def test_a_removed_output_is_not_reported_as_stored(runner, tmp_path):
  target = tmp_path / 'out'
  number, log = runner.start(target)
  while not (target / 'runs').exists():
    pass
  # One operation: shutil.rmtree fails if the command renames a file meanwhile.
  target.rename(tmp_path / 'elsewhere')
  status, out, err = runner.wait(number, log)
  assert status == 2
  assert err.count('\n') == 1
  assert 'to continue' not in out
