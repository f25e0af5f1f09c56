"""Processes with fake devices of their own."""

import os
import pathlib
import signal
import socket
import subprocess
import sys

from tests import compiling

_ROOT = pathlib.Path(__file__).parents[2]


def environment(devices: int, *, patience: int = 60) -> dict[str, str]:
  """Returns the environment of a process with fake devices.

  Args:
    devices: how many.
    patience: seconds after which XLA ends a process in which some device
      doesn't come to a collective.
  """
  flags = (
    f'--xla_force_host_platform_device_count={devices}',
    f'--xla_cpu_collective_call_warn_stuck_timeout_seconds={patience // 2}',
    f'--xla_cpu_collective_call_terminate_timeout_seconds={patience}',
  )
  given = os.environ | compiling.environment(*flags)
  given.pop('PYTEST_XDIST_WORKER', None)
  return given


def run_together(
  module: str, arguments: list[list[str]], *, devices: int
) -> None:
  """Runs one module in several processes that wait for one another.

  Args:
    module: what to run.
    arguments: those of each process, behind the port that all meet at, their
      number and the index of the process.
    devices: number of fake devices of each.
  """
  port, number = str(_free_port()), str(len(arguments))
  running = [
    subprocess.Popen(
      [sys.executable, '-m', module, port, number, str(index), *given],
      cwd=_ROOT,
      env=environment(devices),
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      start_new_session=True,
    )
    for index, given in enumerate(arguments)
  ]
  try:
    outputs = [process.communicate(timeout=900)[0] for process in running]
  finally:
    for process in running:
      if process.poll() is None:
        # Whoever waits for another process doesn't heed a SIGTERM.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
  for process, output in zip(running, outputs, strict=True):
    assert process.returncode == 0, output


def _free_port() -> int:
  with socket.socket() as one:
    one.bind(('127.0.0.1', 0))
    return one.getsockname()[1]
