"""All devices take the same branch, even if their gradients disagree.

If devices decide differently about a conditional that contains an all-reduce,
it never finishes, and XLA ends the process.
"""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.devices import processes, programs
from tests.oracles import ae_sam
from tests.oracles.problems import NETWORK
from tests.oracles.step import Sgd, Step

UNCHECKED = 'shard_map_unchecked'


def _marked(*names):
  return pytest.mark.parametrize(
    'name',
    [
      pytest.param(
        name, marks=pytest.mark.xdist_group(programs.CASES[name].family)
      )
      for name in names
    ],
  )


@functools.cache
def adversarial_batches():
  """One device has a huge gradient, a different one at each step."""
  device = np.arange(NETWORK.examples) // (NETWORK.examples // 8)
  step = np.arange(NETWORK.steps)[:, None]
  # The device with the largest gradient changes, and so does its size: no two
  # devices have the same history.
  exponent = 4.0 * np.cos(2.3 * device[None] * (step + 1))
  weight = jnp.asarray(10.0**exponent, jnp.float32)
  return {**NETWORK.batches(), 'weight': weight}


def careful_base():
  """Takes steps of constant length, so that huge gradients do no harm."""
  return optax.chain(optax.normalize_by_update_norm(), optax.sgd(0.05))


@_marked('ae_sam', 'ae_look_sam', 'ss_sam', 'everything')
def test_all_devices_take_one_branch(name):
  """With check_vma=False nothing is known about replicas at compile time."""
  tx = programs.optimizer(name, sync=name == 'ae_sam', base=careful_base())
  found = programs.OverAxis(tx, UNCHECKED).train(adversarial_batches())
  programs.assert_equal_replicas(found)
  assert len(set(found[0].ascended)) == 2


@_marked(
  'friendly_sam',
  'ae_look_sam',
  'eigen_sam',
  'sparse_sam_fisher',
  'sparse_sam_dynamic',
)
def test_a_non_finite_gradient_on_one_device_is_detected_by_all(name):
  targets = np.array(NETWORK.batches()['y'])
  targets[4, 9] = np.nan
  batches = {**NETWORK.batches(), 'y': jnp.asarray(targets)}
  base = optax.apply_if_finite(careful_base(), 3)
  tx = programs.optimizer(name, base=base)
  found = programs.OverAxis(tx, UNCHECKED).train(batches)
  programs.assert_equal_replicas(found)
  noticed = optax.tree_utils.tree_get(found[0].state, 'total_notfinite')
  assert noticed == 1


def test_local_decisions_of_devices_would_differ():
  """Decisions by local gradients would differ in most steps."""
  batches = jax.tree.map(np.asarray, adversarial_batches())
  moments, disagreements = [(0.0, 0.0)] * 8, 0
  for t in range(NETWORK.steps):
    batch = {k: v[t].astype(np.float64) for k, v in batches.items()}
    step = Step(
      NETWORK, NETWORK.start, batch, t, {}, Sgd(NETWORK), devices=8, sync=False
    )
    sizes = np.sum(step.gradients() ** 2, axis=1)
    assert sizes.max() > 1e6 * sizes.min()
    found = [
      ae_sam.moments_and_decision(x, past, 1 - 2 * t / 20)
      for x, past in zip(sizes, moments, strict=True)
    ]
    moments = [m for m, _ in found]
    disagreements += len({bool(ascends) for _, ascends in found}) > 1
  assert disagreements >= NETWORK.steps // 2


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


@pytest.mark.slow
def test_devices_in_different_branches_end_the_process():
  """The tests above therefore detect decisions that differ."""
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
