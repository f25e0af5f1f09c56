"""Methods under `jit` on arrays that are sharded over eight devices."""

import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from tests.devices import programs
from tests.oracles.problems import NETWORK

# One method of each kind of array operation.
KINDS = (
  'sam',
  'friendly_sam',
  'ae_look_sam',
  'look_sam per_leaf=True alpha=0.3',
  'sparse_sam_fisher',
  'eigen_sam',
  'frob_sam',
  'lpf_sgd',
  'esam',
  'm_sam',
  'lookbehind',
  'b_sam',
  'everything',
)


# Two processes train the other kinds with these placements too, and all rows
# are compared with one device on axes of type Explicit.
PLACEMENTS = {
  'data_model': KINDS,
  'fsdp': ('sam', 'friendly_sam', 'sparse_sam_fisher', 'esam', 'everything'),
  'explicit': ('sam', 'everything'),
}


@pytest.mark.parametrize(
  ('name', 'placement'),
  [
    pytest.param(
      *(name, placement),
      marks=pytest.mark.xdist_group(programs.CASES[name].family),
    )
    for placement, names in PLACEMENTS.items()
    for name in names
  ],
)
def test_sharded_arrays_follow_the_rule(name, placement):
  """Equals one device with the global batch."""
  found = programs.under_jit(name, placement)
  programs.assert_follows(name, found, devices=1)


def test_all_placements_are_used():
  assert set(PLACEMENTS) == set(programs.PLACEMENTS)


def test_averages_of_sharded_weights_are_sharded():
  found = programs.under_jit('after_base', 'fsdp')
  programs.assert_follows('after_base', found, devices=1)
  mean = optax.tree_utils.tree_get(found.state, 'mean')
  averaged = programs.expected('after_base', 1).memory['averaged']
  np.testing.assert_allclose(
    NETWORK.flat(mean), np.mean(averaged, axis=0), rtol=0, atol=1e-5
  )
  spec = PartitionSpec(*programs.PLACEMENTS['fsdp'][1]['kernel'])
  wanted = NamedSharding(programs.mesh(), spec)
  assert mean['kernel'].sharding.is_equivalent_to(wanted, 3)
