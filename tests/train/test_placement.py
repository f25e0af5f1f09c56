"""Runs on several devices, which need a process of their own."""

import os
import pathlib
import subprocess
import sys

import pytest

from optax_sam.train import placement

_ROOT = pathlib.Path(__file__).parents[2]
_FLAGS = (
  '--xla_force_host_platform_device_count=8 '
  '--xla_cpu_collective_call_warn_stuck_timeout_seconds=20 '
  '--xla_cpu_collective_call_terminate_timeout_seconds=60 '
  '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
)


def test_on_eight_devices():
  environment = {**os.environ, 'XLA_FLAGS': _FLAGS, 'JAX_PLATFORMS': 'cpu'}
  environment.pop('PYTEST_XDIST_WORKER', None)
  result = subprocess.run(
    [
      sys.executable,
      *('-m', 'pytest', '-p', 'no:cacheprovider', '-p', 'no:xdist'),
      'tests/train/eight_devices.py',
    ],
    cwd=_ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=900,
    check=False,
  )
  assert result.returncode == 0, result.stdout + result.stderr


def test_one_device_is_left_to_jax():
  for text in (None, 'data=1'):
    one = placement.build(text, 7)
    assert one.replicated is None
    batch = {'labels': 7}
    assert one.batch(batch) is batch


def test_a_mesh_of_more_devices_than_there_are_is_one_line():
  with pytest.raises(ValueError, match='--mesh data=8 must be of all devices'):
    placement.build('data=8', 8)
