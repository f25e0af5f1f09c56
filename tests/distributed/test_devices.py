"""Tests that need several devices, in processes of their own."""

import subprocess
import sys

from tests.distributed import processes


def test_named_axis():
  processes.pass_on_eight_devices(
    'tests/distributed/explicit_axis.py', at_least=430, patience=10
  )


def test_sharded_arrays():
  processes.pass_on_eight_devices(
    'tests/distributed/sharded_arrays.py',
    'tests/distributed/sharded_leaves.py',
    'tests/distributed/behind_base.py',
    at_least=192,
    patience=10,
  )


def test_what_devices_tell_each_other():
  processes.pass_on_eight_devices(
    'tests/distributed/collectives.py',
    'tests/distributed/branches.py',
    at_least=100,
    patience=10,
  )


_DIVERGENT = """
import jax
from jax.sharding import Mesh, PartitionSpec

def decide(x):
  total = lambda: jax.lax.psum(x, 'data')
  return jax.lax.cond(x[0] > 3, total, lambda: x)

every = PartitionSpec('data')
mesh = Mesh(jax.devices(), ('data',))
step = jax.shard_map(
  decide, mesh=mesh, in_specs=every, out_specs=every, check_vma=False
)
print(jax.block_until_ready(jax.jit(step)(jax.numpy.arange(8.0))))
"""


def test_devices_in_different_branches_are_ended():
  """So that a decision that isn't shared fails the tests above."""
  result = subprocess.run(
    [sys.executable, '-c', _DIVERGENT],
    env=processes.environment(8, patience=3),
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert result.returncode != 0
  assert not result.stdout
  assert 'rendezvous' in result.stderr.lower(), result.stderr
