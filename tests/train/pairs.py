"""Two processes of two devices each, for tests."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

from tests import compiling

ROOT = pathlib.Path(__file__).parents[2]
# For what takes less than a minute on an idle machine.
TIMEOUT = 900
# From the end of the first process to that of the second one.
GRACE = 60


def free_port():
  with socket.socket() as found:
    found.bind(('127.0.0.1', 0))
    return found.getsockname()[1]


class Pair:
  """Two running processes, with their output so far in files."""

  def __init__(self, directory, commands, environment=None):
    directory.mkdir(parents=True, exist_ok=True)
    self._outputs = [directory / f'output-{index}.txt' for index in (0, 1)]
    self.processes = []
    for command, path in zip(commands, self._outputs, strict=True):
      with path.open('wb') as output:
        self.processes.append(
          subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=_environment() | (environment or {}),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
          )
        )

  def output(self, index):
    """Returns what a process printed, without the notes of its collectives."""
    lines = self._outputs[index].read_text().splitlines(keepends=True)
    return ''.join(line for line in lines if '[Gloo]' not in line)

  def wait_until(self, holds):
    """Waits for something that happens while both run."""
    deadline = time.monotonic() + TIMEOUT
    while not holds():
      for index, process in enumerate(self.processes):
        assert process.poll() is None, self.output(index)
      assert time.monotonic() < deadline, self.output(0) + self.output(1)
      time.sleep(0.05)

  def statuses(self):
    """Waits for both to end, for the second one not long."""
    deadline = time.monotonic() + TIMEOUT
    waits = [process.poll for process in self.processes]
    while all(wait() is None for wait in waits):
      assert time.monotonic() < deadline, self.output(0) + self.output(1)
      time.sleep(0.05)
    return [process.wait(timeout=GRACE) for process in self.processes]

  def kill(self):
    for process in self.processes:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
      process.wait()


@contextlib.contextmanager
def started(directory, commands, environment=None):
  """Yields two processes that have ended for certain afterwards."""
  pair = Pair(directory, commands, environment)
  try:
    yield pair
  finally:
    pair.kill()


def train(directory, *arguments):
  """Starts `optax-sam train` in two processes."""
  where = f'127.0.0.1:{free_port()}'
  common = ['-m', 'optax_sam.train.cli', 'train', '--coordinator', where]
  commands = [
    [*common, '--num-processes', '2', '--process-id', str(index), *arguments]
    for index in (0, 1)
  ]
  return started(directory, commands)


def run_tests(directory, file):
  """Runs the tests of a file in two processes in step; returns how it went.

  They find each other by COORDINATOR and PROCESS.
  """
  tests = ['-m', 'pytest', '-x', '-p', 'no:cacheprovider', '-p', 'no:xdist']
  commands = [
    [*tests, f'--basetemp={directory / str(index)}', file] for index in (0, 1)
  ]
  where = f'127.0.0.1:{free_port()}'
  shared = directory / 'shared'
  shared.mkdir(parents=True)
  for index, command in enumerate(commands):
    program = (
      'import os, sys; '
      f'os.environ["PROCESS"] = "{index}"; '
      'import pytest; sys.exit(pytest.main(sys.argv[1:]))'
    )
    command[:2] = ['-c', program]
  environment = {'COORDINATOR': where, 'SHARED': str(shared)}
  with started(directory, commands, environment) as pair:
    statuses = pair.statuses()
    return statuses, [pair.output(0), pair.output(1)]


def _environment():
  environment = os.environ | compiling.environment(
    '--xla_force_host_platform_device_count=2'
  )
  for name in list(environment):
    if name.startswith('PYTEST_'):
      del environment[name]
  return environment
