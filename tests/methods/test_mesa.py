"""MESA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from tests.oracles import mesa as rule
from tests.oracles.saf import logits_of, term_and_gradient

BUILD = optax_sam.mesa_loss
EPOCH = 5  # the first one with the loss


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_equal_average_and_weights_give_no_gradient(dtype):
  z = jnp.asarray(logits_of(1, rows=64), dtype)
  value, gradient = jax.jit(jax.value_and_grad(BUILD().loss))(z, z, EPOCH)
  assert (value.dtype, gradient.dtype) == (jnp.float32, z.dtype)
  # Up to rounding; unrelated logits give 0.02.
  np.testing.assert_allclose(value, 0, atol=1e-6)
  np.testing.assert_allclose(gradient.astype('float32'), 0, atol=1e-8)


def test_the_target_gets_no_gradient():
  mesa, z = BUILD(), jnp.asarray(logits_of(1), 'float32')
  assert not jnp.any(jax.grad(lambda y: mesa.loss(z, y, EPOCH))(2 * z))


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('given', [{}, {'start_epoch': 0}, {'start_epoch': 7}])
def test_training_follows_the_rule(given):
  mesa, x = BUILD(2.0, 0.7, decay=0.9, **given), logits_of(0, rows=5)
  start, epochs = given.get('start_epoch', 5), [0, 0, 4, 4, 5, 5, 6, 7, 9]

  @jax.jit
  def step(w, state, epoch):
    state = mesa.update(w, state)
    term = lambda w: mesa.loss(x @ w, x @ state.average, epoch)
    value, gradient = jax.value_and_grad(term)(w)
    return w - 0.3 * (gradient + jnp.cos(w)), state, value

  w = logits_of(1, rows=3)
  found, state = jnp.asarray(w), mesa.init(jnp.asarray(w))
  steps = rule.mesa(x, w, epochs, 0.3, 0.9, 2.0, 0.7, start)
  for number, (term, w, average) in enumerate(steps):
    found, state, value = step(found, state, epochs[number])
    # The average starts at the weights, so the loss of the first step is 0.
    assert (value > 0) == (number > 0 and epochs[number] >= start)
    np.testing.assert_allclose(value, term, rtol=1e-11, atol=1e-15)
    np.testing.assert_allclose(found, w, rtol=0, atol=1e-13)
    np.testing.assert_allclose(state.average, average, rtol=0, atol=1e-14)


def test_the_average_is_float32_for_any_tree():
  mesa = BUILD(decay=0.5)
  tree = {'w': jnp.ones(2, 'bfloat16'), 'n': jnp.int32(1), 'b': jnp.float32(0)}
  state = mesa.init(tree)
  later = jax.tree.map(lambda x: x + jnp.ones((), x.dtype), tree)
  after = mesa.update(later, state).average
  assert after['w'].dtype == jnp.float32
  assert after['w'].tolist() == [1.5, 1.5]
  assert (int(after['n']), float(after['b'])) == (2, 0.5)
  # Constant parameters leave the average bit-identical.
  still = BUILD()
  w = jnp.asarray(logits_of(0), 'float32')
  np.testing.assert_array_equal(still.update(w, still.init(w)).average, w)
  broken = {**later, 'b': jnp.float32(jnp.nan)}
  same = mesa.update(broken, state).average
  assert all(map(jnp.array_equal, same.values(), state.average.values()))


def test_padding_rows_are_ignored():
  z, y = (jnp.asarray(logits_of(seed), 'float32') for seed in (9, 8))
  is_example, y = np.arange(4) < 2, y.at[3].set(jnp.nan)
  found = BUILD().loss(z.at[2].set(jnp.nan), y, EPOCH, is_example)
  np.testing.assert_allclose(
    found, BUILD().loss(z[:2], y[:2], EPOCH) / 2, rtol=1e-6
  )


def test_numbers_may_be_traced_and_a_weight_of_zero_is_the_base():
  z, y = (jnp.asarray(logits_of(seed), 'float32') for seed in (1, 2))
  term = lambda z, weight: BUILD(2.0, weight).loss(z, y, EPOCH)
  term_and_change = jax.jit(jax.value_and_grad(term))
  assert not any(map(jnp.any, term_and_change(z, 0.0)))
  wide = (np.asarray(x, np.float64) for x in (z, y))
  expected, _ = term_and_gradient(*wide, 2.0, 0.7)
  np.testing.assert_allclose(term_and_change(z, 0.7)[0], expected, rtol=1e-5)


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'temperature': -1}, 'temperature must be above 0'),
    ({'weight': -1}, 'weight must be at least 0'),
    ({'decay': 1}, 'decay must be at least 0 and below 1'),
    ({'start_epoch': -1}, 'start_epoch must be at least 0'),
  ],
)
def test_invalid_settings_raise(given, message):
  with pytest.raises(ValueError, match=message):
    BUILD(**given)


def test_targets_of_another_batch_raise():
  with pytest.raises(
    ValueError, match=r'targets must have the shape .* \(4, 3'
  ):
    BUILD().loss(jnp.zeros((4, 3)), jnp.zeros((5, 3)), EPOCH)


@pytest.mark.parametrize(
  ('epoch', 'message'),
  [
    (5.0, r'epoch must be integers of shape \(\), got float'),
    (np.arange(2), r'epoch must be integers of shape \(\), got int'),
    (-1, 'epoch must be at least 0'),
  ],
)
def test_an_invalid_epoch_raises(epoch, message):
  z = jnp.zeros((4, 3))
  with pytest.raises(ValueError, match=message):
    BUILD().loss(z, z, epoch)
