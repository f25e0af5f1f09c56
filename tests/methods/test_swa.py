"""SWA."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests.contracts import comparisons
from tests.oracles import swa

STEPS = 12


def _loss(w):
  return jnp.sum(jnp.cos(w['a'])) + jnp.sum(jnp.square(w['b']))


def _params(dtype=jnp.float32):
  return {
    'a': jnp.linspace(0.1, 1.0, 4).astype(dtype),
    'b': jnp.full((2, 3), 0.5, dtype),
  }


@jax.jit
def _run(start, every):
  """Returns the parameters after each step, and the state in the end."""
  tx = optax.chain(optax.sgd(0.1, 0.9), optax_sam.swa(start, every=every))

  def step(carry, _):
    w, state = carry
    updates, state = tx.update(jax.grad(_loss)(w), state, w)
    w = optax.apply_updates(w, updates)
    return (w, state), (w, optax_sam.averaged_params(w, state))

  carry = (_params(), tx.init(_params()))
  return jax.lax.scan(step, carry, length=STEPS)


@pytest.mark.parametrize(
  ('start', 'every'), [(1, 1), (4, 3), (2, 5), (12, 1), (13, 1)]
)
def test_average_is_that_of_the_parameters_after_these_steps(start, every):
  (_, (_, state)), (path, averages) = _run(start, every)
  for steps in (3, STEPS):
    for name, iterates in path.items():
      expected, size = swa.swa(iterates, start, every, steps)
      np.testing.assert_allclose(averages[name][steps - 1], expected, rtol=1e-6)
  assert int(optax.tree_utils.tree_get(state, 'size')) == size
  assert int(state.count) == STEPS


def test_updates_pass():
  updates = _params()
  tx = optax_sam.swa(1)
  passed, _ = tx.update(updates, tx.init(updates), updates, value=3.0)
  assert passed is updates


def test_what_is_no_float_is_not_averaged():
  params = {
    **_params(),
    'key': jax.random.key(0),
    'steps': jnp.asarray(3),
    'nothing': None,
  }
  tx = optax_sam.swa(1)
  state = tx.init(params)
  assert len(jax.tree.leaves(state)) == 4  # two numbers, two leaves
  zeros = {
    **jax.tree.map(jnp.zeros_like, _params()),
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
  # In bfloat16 a mean of many stops at the first ones.
  params = jax.tree.map(jnp.ones_like, _params(jnp.bfloat16))
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


def test_parameters_that_are_not_finite_do_not_enter():
  params = _params()
  tx = optax_sam.swa(1)
  zeros = jax.tree.map(jnp.zeros_like, params)
  _, before = tx.update(zeros, tx.init(params), params)
  for bad in (jnp.inf, jnp.nan):
    spoilt = {**zeros, 'b': zeros['b'].at[0, 0].set(bad)}
    _, after = tx.update(spoilt, before, params)
    comparisons.assert_equal(after.average, before.average)
    assert int(after.count) == 2


def test_the_average_is_found_wherever_it_sits():
  average = optax_sam.swa(1)
  wrapped = optax.apply_if_finite(optax.chain(optax.sgd(0.1), average), 3)
  params = _params()
  state = wrapped.init(params)
  updates, state = wrapped.update(params, state, params)
  found = optax_sam.averaged_params(params, state)
  comparisons.assert_close(found, optax.apply_updates(params, updates))


@pytest.mark.parametrize(
  ('tx', 'number'),
  [
    (optax.sgd(0.1), 0),
    (optax.chain(optax_sam.swa(1), optax_sam.swa(2)), 2),
  ],
)
def test_there_must_be_one(tx, number):
  with pytest.raises(ValueError, match=rf'one SwaState, but has {number}: '):
    optax_sam.averaged_params(_params(), tx.init(_params()))


def test_parts_are_like_the_parameters():
  state = optax_sam.swa(1).init(_params())
  marked = optax.tree_map_params(optax_sam.swa(1), lambda leaf: leaf + 1, state)
  comparisons.assert_equal(
    marked.average.mean, jax.tree.map(jnp.ones_like, state.average.mean)
  )
  comparisons.assert_equal(marked.count, state.count)


@pytest.mark.parametrize('argument', ['start', 'every'])
@pytest.mark.parametrize('bad', [0, -1, 2.5, None, '3'])
def test_bad_arguments(argument, bad):
  arguments = {'start': 1, argument: bad}
  with pytest.raises(ValueError, match=f'^{argument} must be'):
    functools.partial(optax_sam.swa, **arguments)()


def test_missing_params_are_asked_for():
  tx = optax_sam.swa(1)
  with pytest.raises(ValueError, match='params must be given'):
    tx.update(_params(), tx.init(_params()))
