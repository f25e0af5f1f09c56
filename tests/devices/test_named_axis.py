"""Every method on eight devices with a named axis."""

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from optax_sam import catalog
from tests.devices import collectives, programs
from tests.oracles.problems import NETWORK

# One method of each kind runs in all ways: stateless, with a stateful
# perturbation, with a gradient-based policy, with a reused direction, with
# selected examples, and a wrapper of the base optimizer.
KINDS = ('sam', 'friendly_sam', 'ae_sam', 'look_sam', 'k_sam', 'lookbehind')
# Further cases that depend on devices, in addition to the first of each method.
OTHERS = (
  'sam ascent_steps=2',
  'friendly_sam order=official',
  'sparse_sam_fisher num_samples=64',
  'subset_sam fraction=3 key=1',
)


def _param(case, sync):
  return pytest.param(
    case.name,
    sync,
    marks=pytest.mark.xdist_group(case.family),
    id=f'{case.name}-{"synced" if sync else "local"}',
  )


CASES = [
  _param(case, sync)
  for name, case in programs.CASES.items()
  if case.takes('axis_name') and (' ' not in name or name in OTHERS)
  for sync in ((False, True) if case.takes('sync_ascent') else (False,))
]
OF_METHODS = [x for x in CASES if x.values[0] in catalog.METHODS]


def test_all_methods_are_covered():
  chosen = {x.values[0] for x in OF_METHODS}
  wanted = ('chain', 'wraps', 'replaces')
  assert chosen == {
    name for name, row in catalog.METHODS.items() if row.place in wanted
  }


@pytest.mark.parametrize(('name', 'sync'), CASES)
def test_devices_follow_the_rule_and_stay_equal(name, sync):
  """Compares weights and state on every device."""
  found = programs.over_axis(name, sync=sync).train()
  programs.assert_equal_replicas(found)
  programs.assert_follows(name, found[0], sync=sync)


@pytest.mark.parametrize(('name', 'sync'), OF_METHODS)
def test_collectives_agree_with_the_catalog(name, sync):
  said = catalog.METHODS[name].collectives[sync]
  found = collectives.all_reduces(programs.over_axis(name, sync=sync).text)
  collectives.assert_meant(found, said)


@pytest.mark.xdist_group('sam')
def test_every_ascent_step_is_averaged_if_one_is():
  local, synced = (
    collectives.all_reduces(
      programs.over_axis('sam ascent_steps=2', sync=sync).text
    )
    for sync in (False, True)
  )
  assert local == collectives.MEANING['none']
  gradient, with_info = collectives.GRADIENT, collectives.WITH_INFO
  assert synced == ([gradient, gradient, with_info], [], [])


def test_plain_sgd_averages_one_gradient():
  average = optax.stateless(lambda g, _: jax.lax.pmean(g, 'data'))
  tx = optax.with_extra_args_support(optax.chain(average, optax.sgd(0.05)))
  program = programs.OverAxis(tx, 'shard_map')
  found = collectives.all_reduces(program.text)
  assert found == ([collectives.GRADIENT], [], [])


@pytest.mark.parametrize('way', ['pmap', 'shard_map_unchecked'])
@pytest.mark.parametrize('name', KINDS)
def test_other_parallel_transformations_follow_the_rule(name, way):
  found = programs.over_axis(name, way).train()
  programs.assert_equal_replicas(found)
  programs.assert_follows(name, found[0])


@pytest.mark.xdist_group('compositions')
def test_average_of_the_parameters_is_on_all_devices():
  found = programs.over_axis('after_base', sync=True).train()[0]
  mean = optax.tree_utils.tree_get(found.state, 'mean')
  rule = programs.expected('after_base', sync=True)
  expected = np.mean(rule.memory['averaged'], axis=0)
  np.testing.assert_allclose(NETWORK.flat(mean), expected, rtol=0, atol=1e-5)


def test_local_and_synced_rules_differ():
  """Synced devices perturb like one device with the global batch."""
  for name, sync in (x.values for x in OF_METHODS):
    if sync:
      local, synced, alone = (
        programs.expected(name, *given).path[-1]
        for given in ((8, False), (8, True), (1, False))
      )
      same_locally = np.allclose(local, alone, rtol=0, atol=2e-4)
      if catalog.METHODS[name].needs != 'examples':
        np.testing.assert_allclose(synced, alone, rtol=0, atol=1e-9)
        # Except methods whose perturbation is the same on all devices.
        assert same_locally == np.allclose(local, synced, rtol=0, atol=2e-4)


def test_gradients_that_are_already_summed_raise():
  tx = programs.optimizer('sam')
  params = NETWORK.params()
  program = jax.shard_map(
    NETWORK.training_step(tx),
    mesh=programs.mesh(),
    in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec('data')),
    out_specs=PartitionSpec(),
  )
  batch = jax.tree.map(lambda x: x[0], NETWORK.batches())
  with pytest.raises(ValueError, match=r'updates must be local.*pcast'):
    jax.jit(program)(params, tx.init(params), batch)
