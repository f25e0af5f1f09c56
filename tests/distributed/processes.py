"""Tests that need eight devices, run in a process of their own."""

import os
import pathlib
import re
import subprocess
import sys

_ROOT = pathlib.Path(__file__).parents[2]
_FLAGS = (
  '--xla_force_host_platform_device_count=8 '
  '--xla_cpu_collective_call_warn_stuck_timeout_seconds=20 '
  '--xla_cpu_collective_call_terminate_timeout_seconds=60 '
  '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
)


def pass_on_eight_devices(*files: str, at_least: int) -> None:
  """Runs the tests of files, which must all pass and none be skipped.

  Args:
    *files: relative to the root of the project.
    at_least: number of tests, so that none is lost unnoticed.
  """
  environment = {**os.environ, 'XLA_FLAGS': _FLAGS, 'JAX_PLATFORMS': 'cpu'}
  environment.pop('PYTEST_XDIST_WORKER', None)
  result = subprocess.run(
    [
      sys.executable,
      *('-m', 'pytest', '-p', 'no:cacheprovider', '-p', 'no:xdist'),
      *files,
    ],
    cwd=_ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=900,
    check=False,
  )
  assert result.returncode == 0, result.stdout + result.stderr
  passed = re.search(r'(\d+) passed', result.stdout)
  assert passed is not None, result.stdout
  assert int(passed[1]) >= at_least, result.stdout
  assert 'skipped' not in result.stdout, result.stdout
