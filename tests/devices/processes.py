"""Processes with fake devices."""

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
    devices: number of devices.
    patience: seconds after which XLA ends a process if a device does not reach
      a collective.
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
  """Runs a module in several processes with common collectives.

  Args:
    module: name of the module.
    arguments: arguments of each process, after the port of the coordinator, the
      number of processes and the index of the process.
    devices: number of fake devices per process.
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
        # A process that waits for another one ignores SIGTERM.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
  for process, output in zip(running, outputs, strict=True):
    assert process.returncode == 0, output


def _free_port() -> int:
  with socket.socket() as one:
    one.bind(('127.0.0.1', 0))
    return one.getsockname()[1]
