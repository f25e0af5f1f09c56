"""MESA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from tests.methods import auxiliary
from tests.methods.auxiliary import TAU, WEIGHT, logits_of
from tests.oracles import mesa as rule
from tests.oracles.saf import softmax, term_and_gradient

BUILD = optax_sam.mesa_loss


@pytest.mark.usefixtures('float64')
def test_value_and_gradient_are_those_of_the_formula():
  z, y = logits_of(1), logits_of(2)
  term = lambda z: BUILD(TAU, WEIGHT).loss(z, jnp.asarray(y))
  value, gradient = jax.jit(jax.value_and_grad(term))(jnp.asarray(z))
  expected = term_and_gradient(z, y, TAU, WEIGHT)
  np.testing.assert_allclose(value, expected[0], rtol=1e-12)
  np.testing.assert_allclose(gradient, expected[1], rtol=0, atol=1e-14)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_where_nothing_has_changed_there_is_no_gradient(dtype):
  z = jnp.asarray(logits_of(1, rows=64), dtype)
  auxiliary.assert_no_term(lambda x: BUILD().loss(x, z), z)


@pytest.mark.usefixtures('float64')
def test_the_curvature_is_that_of_the_formula():
  """So that products with the Hessian see the term as well."""
  mesa, y = BUILD(TAU, WEIGHT), jnp.asarray(logits_of(2))
  z, direction = jnp.asarray(logits_of(1)), jnp.asarray(logits_of(3))
  gradient = jax.grad(lambda z: mesa.loss(z, y))
  _, found = jax.jvp(gradient, (z,), (direction,))
  q = softmax(z / TAU)
  d = np.asarray(direction) / TAU
  expected = q * (d - np.sum(q * d, axis=-1, keepdims=True))
  np.testing.assert_allclose(found, WEIGHT * TAU * expected / 4, atol=1e-14)


def test_no_gradient_goes_to_the_target():
  mesa, z = BUILD(), jnp.asarray(logits_of(1), 'float32')
  assert not jnp.any(jax.grad(lambda y: mesa.loss(z, y))(2 * z))


@pytest.mark.usefixtures('float64')
def test_follows_the_rule():
  mesa, x = BUILD(TAU, WEIGHT, decay=0.9), logits_of(0, rows=5)

  @jax.jit
  def step(w, state):
    state = mesa.update(w, state)
    term = lambda w: mesa.loss(x @ w, x @ state.average)
    value, gradient = jax.value_and_grad(term)(w)
    return w - 0.3 * (gradient + jnp.cos(w)), state, value

  w = logits_of(1, rows=3)
  found, state = jnp.asarray(w), mesa.init(jnp.asarray(w))
  steps = rule.mesa(x, w, 6, 0.3, 0.9, TAU, WEIGHT)
  for number, (term, w, average) in enumerate(steps):
    found, state, value = step(found, state)
    # The average starts at the weights, and so without a term.
    assert (value > 0) == (number > 0)
    np.testing.assert_allclose(value, term, rtol=1e-11, atol=1e-15)
    np.testing.assert_allclose(found, w, rtol=0, atol=1e-13)
    np.testing.assert_allclose(state.average, average, rtol=0, atol=1e-14)


def test_average_of_any_tree_is_wide():
  mesa = BUILD(decay=0.5)
  tree = {'w': jnp.ones(2, 'bfloat16'), 'n': jnp.int32(1), 'b': jnp.float32(0)}
  state = mesa.init(tree)
  later = jax.tree.map(lambda x: x + jnp.ones((), x.dtype), tree)
  after = mesa.update(later, state).average
  assert after['w'].dtype == jnp.float32
  assert after['w'].tolist() == [1.5, 1.5]
  assert (int(after['n']), float(after['b'])) == (2, 0.5)
  # What stands still stays where it is to the bit, after any number of steps.
  still = BUILD()
  w = jnp.asarray(logits_of(0), 'float32')
  np.testing.assert_array_equal(still.update(w, still.init(w)).average, w)
  broken = {**later, 'b': jnp.float32(jnp.nan)}
  same = mesa.update(broken, state).average
  assert all(map(jnp.array_equal, same.values(), state.average.values()))


def test_rows_that_only_fill_a_batch_up():
  y = jnp.asarray(logits_of(8), 'float32').at[3].set(jnp.nan)
  auxiliary.assert_padding_adds_rows(
    lambda z, rows, shown: BUILD().loss(z, y[rows], shown)
  )


def test_a_weight_of_zero_is_the_base():
  auxiliary.assert_a_weight_of_zero_is_the_base('mesa')


def test_what_a_step_costs():
  # A gradient is three passes here but for the first layer's inputs, to which
  # there is none.
  assert 1.2 < auxiliary.operations('mesa') < 1.5


def test_numbers_may_be_traced():
  z, y = (jnp.asarray(logits_of(seed), 'float32') for seed in (1, 2))
  term = lambda temperature, weight: BUILD(temperature, weight).loss(z, y)
  wide = (np.asarray(x, np.float64) for x in (z, y))
  expected, _ = term_and_gradient(*wide, TAU, WEIGHT)
  np.testing.assert_allclose(jax.jit(term)(TAU, WEIGHT), expected, rtol=1e-5)


def test_state_survives_a_checkpoint(tmp_path):
  params = {'w': jnp.arange(3.0)}
  like = BUILD().init(jax.tree.map(jnp.zeros_like, params))
  auxiliary.assert_survives(BUILD().init(params), like, tmp_path)


@pytest.mark.parametrize(
  ('given', 'complaint'),
  [
    ({'temperature': -1}, 'temperature must be above 0'),
    ({'weight': -1}, 'weight must be at least 0'),
    ({'decay': 1}, 'decay must be at least 0 and below 1'),
  ],
)
def test_bad_settings_are_named(given, complaint):
  with pytest.raises(ValueError, match=complaint):
    BUILD(**given)


def test_targets_of_another_batch_are_named():
  with pytest.raises(
    ValueError, match=r'targets must have the shape .* \(4, 3'
  ):
    BUILD().loss(jnp.zeros((4, 3)), jnp.zeros((5, 3)))
