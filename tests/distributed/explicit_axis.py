"""Every method under `shard_map` and `pmap`, on eight fake devices."""

import functools
import inspect

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import optax_sam
from tests.contracts import comparisons, table
from tests.distributed import by_hand, problem, two_processes, ways

DEVICES = 8
TOLERANCE = 1e-5
# Doubles and floats may be rounded to different numbers of eight bits.
ROUNDED = {'friendly_sam in bfloat16', 'look_sam in bfloat16'}


# `pmap` is a `shard_map` without checks: the latter is for one method of each
# kind, and for what holds a base optimizer.
UNCHECKED = {*two_processes.ALL_WAYS, *problem.WRAPPERS}


def goes(name, way):
  """Methods go all ways, other settings of theirs the strictest one."""
  if way == 'shard_map_unchecked':
    return name in UNCHECKED
  return way == 'shard_map' or name in problem.METHODS


CASES = [
  (name, way)
  for name in problem.ROWS
  for way in ways.OVER_AXIS
  if goes(name, way)
  # The batch that it keeps would have to be of one device before there is one.
  and (name, way) != ('sampa', 'pmap')
]


def every_case():
  cases = [
    (name, way, sync) for name, way in CASES for sync in problem.settings(name)
  ]
  return pytest.mark.parametrize(('name', 'way', 'sync'), cases)


@functools.cache
def trained(name, way, sync):
  tx = problem.over_axis(name, sync=sync)
  return ways.over_axis(tx, way, problem.batches())


on_one_device = functools.cache(ways.on_one_device)


@functools.cache
def expected(name, sync):
  return by_hand.train(name, DEVICES, sync=sync)


def test_there_are_eight_devices():
  assert jax.device_count() == DEVICES


def test_no_public_method_is_left_out():
  """Nor what wraps a base optimizer, which the contracts don't know."""
  assert set(table.public_methods()) == set(table.METHODS)
  wrappers = set()
  for name in optax_sam.__all__:
    function = getattr(optax_sam, name)
    if inspect.isfunction(function):
      parameters = inspect.signature(function).parameters
      first = next(iter(parameters), None)
      wrappers |= {name} if first in table.NO_ELEMENT else set()
  assert wrappers - {'rho_like_learning_rate'} == set(problem.WRAPPERS)
  assert set(by_hand.METHODS) == set(problem.ROWS)


@every_case()
def test_replicas_stay_bit_equal(name, way, sync):
  """What each device holds of weights and state, read from the device."""
  first, *others = trained(name, way, sync)
  assert len(others) == DEVICES - 1
  for other in others:
    comparisons.assert_equal(other, first)
  assert comparisons.all_finite(first)


@every_case()
def test_equals_an_independent_computation_per_device(name, way, sync):
  w, ascended = expected(name, sync)
  found = trained(name, way, sync)[0]
  tolerance = 1e-3 if name in ROUNDED else TOLERANCE
  np.testing.assert_allclose(
    by_hand.flat(found.params), w, rtol=0, atol=tolerance
  )
  np.testing.assert_array_equal(found.ascended, ascended)


@pytest.mark.parametrize(
  ('name', 'way'),
  [case for case in CASES if not problem.ROWS[case[0]].needs_examples],
)
def test_synced_ascent_equals_the_global_batch(name, way):
  found, one = trained(name, way, True)[0], on_one_device(name)
  tolerance = 1e-3 if name in ROUNDED else TOLERANCE
  comparisons.assert_close(found.params, one.params, tolerance)
  assert jax.tree.structure(found) == jax.tree.structure(one)
  for left, right in zip(
    jax.tree.leaves(found), jax.tree.leaves(one), strict=True
  ):
    assert left.dtype == right.dtype
    if np.issubdtype(left.dtype, np.inexact) or left.dtype == 'bfloat16':
      left, right = np.float32(left), np.float32(right)
      np.testing.assert_allclose(left, right, rtol=1e-2, atol=tolerance)
    else:
      np.testing.assert_array_equal(left, right)


def test_the_devices_have_something_to_disagree_on():
  """Otherwise a local ascent could pass for a synced one."""
  for name in problem.ROWS:
    row = problem.ROWS[name]
    if row.perturbs and not row.ascends_alike:
      local, synced = (expected(name, sync)[0] for sync in (False, True))
      assert np.max(np.abs(local - synced)) > 20 * TOLERANCE, name


@pytest.mark.parametrize(
  ('name', 'parts'), [('sam', 'm_sam by 8'), ('m_sam by 4', 'm_sam by 4')]
)
def test_m_sharpness_does_not_depend_on_the_devices(name, parts):
  """As many examples are perturbed together, wherever they lie."""
  found, one = trained(name, 'shard_map', False)[0], on_one_device(parts)
  comparisons.assert_close(found.params, one.params, TOLERANCE)


def test_gradients_that_were_summed_already_are_refused():
  params = problem.params()
  tx = problem.over_axis('sam', sync=False)
  step = jax.shard_map(
    functools.partial(problem.train_step, tx),
    mesh=ways.mesh(),
    in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec('data')),
    out_specs=PartitionSpec(),
  )
  batch = jax.tree.map(lambda x: x[0], problem.batches())
  with pytest.raises(ValueError, match=r'updates must be local.*pcast'):
    jax.jit(step)(params, tx.init(params), batch)
