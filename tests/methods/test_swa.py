"""SWA."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests.contracts import comparisons
from tests.methods import checks
from tests.oracles import swa
from tests.oracles.problems import NETWORK

PARAMS = {'a': jnp.linspace(0.1, 1.0, 4), 'b': jnp.full((2, 3), 0.5)}


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize(
  ('start', 'every'), [(1, 1), (4, 3), (2, 5), (10, 1), (11, 1)]
)
def test_average_is_that_of_the_parameters_after_these_steps(start, every):
  tx = optax.chain(NETWORK.base(), optax_sam.swa(start, every=every))
  path, _, state = checks.run(tx)
  expected, size = swa.swa(path, start, every, NETWORK.steps)
  found = optax_sam.averaged_params(NETWORK.tree(path[-1]), state)
  np.testing.assert_allclose(NETWORK.flat(found), expected, rtol=0, atol=1e-12)
  assert int(optax.tree_utils.tree_get(state, 'size')) == size


def test_integer_leaves_are_not_averaged():
  params = {
    **PARAMS,
    'key': jax.random.key(0),
    'steps': jnp.asarray(3),
    'nothing': None,
  }
  tx = optax_sam.swa(1)
  state = tx.init(params)
  assert len(jax.tree.leaves(state)) == 4  # two numbers, two leaves
  zeros = {
    **jax.tree.map(jnp.zeros_like, PARAMS),
    'key': np.zeros((), jax.dtypes.float0),
    'steps': np.zeros((), jax.dtypes.float0),
    'nothing': None,
  }
  _, state = tx.update(zeros, state, params)
  later = {**params, 'a': params['a'] + 1, 'steps': jnp.asarray(4)}
  _, state = tx.update(zeros, state, later)
  found = optax_sam.averaged_params(later, state)
  assert int(found['steps']) == 4
  assert found['key'] is later['key']
  assert found['nothing'] is None
  np.testing.assert_allclose(found['a'], params['a'] + 0.5, rtol=1e-6)


def test_the_average_is_single_precision_at_least():
  # In bfloat16 a running mean would stop changing.
  params = optax.tree.cast(optax.tree.ones_like(PARAMS), jnp.bfloat16)
  tx = optax_sam.swa(1)
  step = jax.jit(tx.update)
  state = tx.init(params)
  zeros = jax.tree.map(jnp.zeros_like, params)
  for number in range(101):
    for size in (0.0, number):
      now = jax.tree.map(lambda w, x=size: w * x, params)
      _, state = step(zeros, state, now)
  means = jax.tree.leaves(state.average.mean)
  assert {leaf.dtype for leaf in means} == {jnp.dtype('float32')}
  np.testing.assert_allclose(means[0], 25, rtol=1e-6)
  found = optax_sam.averaged_params(params, state)
  assert found['a'].dtype == jnp.bfloat16


def test_parameters_that_are_not_finite_are_not_averaged():
  tx = optax_sam.swa(1)
  zeros = jax.tree.map(jnp.zeros_like, PARAMS)
  _, before = tx.update(zeros, tx.init(PARAMS), PARAMS)
  for bad in (jnp.inf, jnp.nan):
    spoilt = {**zeros, 'b': zeros['b'].at[0, 0].set(bad)}
    _, after = tx.update(spoilt, before, PARAMS)
    comparisons.assert_equal(after, before)


def test_the_average_is_found_anywhere_in_the_state():
  average = optax_sam.swa(1)
  wrapped = optax.apply_if_finite(optax.chain(optax.sgd(0.1), average), 3)
  state = wrapped.init(PARAMS)
  updates, state = wrapped.update(PARAMS, state, PARAMS)
  found = optax_sam.averaged_params(PARAMS, state)
  comparisons.assert_close(found, optax.apply_updates(PARAMS, updates))


@pytest.mark.parametrize(
  ('tx', 'number'),
  [
    (optax.sgd(0.1), 0),
    (optax.chain(optax_sam.swa(1), optax_sam.swa(2)), 2),
  ],
)
def test_several_or_no_averages_raise(tx, number):
  with pytest.raises(ValueError, match=rf'one SwaState, but has {number}: '):
    optax_sam.averaged_params(PARAMS, tx.init(PARAMS))
