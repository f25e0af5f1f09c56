"""What stands behind the base optimizer, on eight fake devices."""

import functools

import jax
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import optax_sam
from optax_sam import elements
from optax_sam.averaging.swa import SwaState
from tests.contracts import comparisons
from tests.distributed import problem, ways


def base():
  return optax.chain(
    optax.sgd(problem.LEARNING_RATE, problem.MOMENTUM),
    optax_sam.anti_pgd(0.01, key=1),
    optax_sam.swa(3, every=2),
  )


@functools.cache
def alone():
  tx = problem.optimizer('sam', base())
  start = problem.params()
  program = jax.jit(functools.partial(problem.train, tx))
  return ways.Trained(*program(start, tx.init(start), problem.batches()))


def results(trained):
  """Returns the parameters and their average."""
  (state,) = elements.states(trained.opt_state, SwaState)
  assert int(state.average.size) == 4
  return trained.params, state.average.mean


@pytest.mark.parametrize('way', ways.OVER_AXIS)
def test_replicas_stay_equal_and_are_those_of_one_device(way):
  tx = problem.over_axis('sam', sync=True, base=base())
  first, *others = ways.over_axis(tx, way, problem.batches())
  for other in others:
    comparisons.assert_equal(other, first)
  comparisons.assert_close(results(first), results(alone()), 1e-5)


def test_split_weights_have_split_averages():
  tx = problem.optimizer('sam', base())
  axes, specs = ways.PLACEMENTS['fsdp']
  devices, given = ways.mesh(axes), problem.params()
  params = {
    'hidden': {
      leaf: ways.spread(given['hidden'][leaf], devices, *specs[leaf])
      for leaf in ('bias', 'kernel')
    },
    'offset': ways.spread(given['offset'], devices),
    'out': ways.spread(given['out'], devices, *specs['out']),
  }
  batches = ways.spread(problem.batches(), devices, None, 'data')
  program = jax.jit(functools.partial(problem.train, tx))
  found = ways.Trained(*program(params, tx.init(params), batches))
  comparisons.assert_close(results(found), results(alone()), 1e-5)
  kernel = results(found)[1]['hidden']['kernel']
  wanted = NamedSharding(devices, PartitionSpec(*specs['kernel']))
  assert kernel.sharding.is_equivalent_to(wanted, np.ndim(kernel))
