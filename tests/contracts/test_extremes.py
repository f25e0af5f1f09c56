"""Extreme gradients and unusual pytrees."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.contracts import comparisons, table

every_element = table.every_kind(table.in_chain)


def steps_of(name, params, losses, batch, steps=3):
  """Takes some steps of the method alone; yields (direction, state)."""
  tx = table.ROWS[name].alone()
  given = {
    'value_fn': lambda p: jnp.mean(losses(p, batch)),
    'per_example_value_fn': losses,
    'batch': batch,
  }

  @jax.jit
  def update(params, state):
    grads = jax.grad(given['value_fn'])(params)
    return tx.update(grads, state, params, **given)

  state = tx.init(params)
  for _ in range(steps):
    direction, state = update(params, state)
    yield direction, state


@every_element
def test_gradients_whose_squares_overflow_or_underflow_give_finite_steps(name):
  """The norm is then taken in a unit that is a power of two."""
  losses = lambda p, batch: batch * jnp.sum(p['w'])
  params = {'w': jnp.ones((2, 2))}
  for size in (1e-30, 1e30):
    batch = jnp.full(8, size, jnp.float32)
    for direction, state in steps_of(name, params, losses, batch):
      # The metrics have the norm as computed, even infinity.
      assert comparisons.all_finite((direction, state._replace(info=())))
      np.testing.assert_allclose(direction['w'], size, rtol=1e-5)


@every_element
def test_a_tree_without_leaves_is_accepted(name):
  losses = lambda _, batch: 0.0 * batch
  for direction, _ in steps_of(name, {'nothing': {}}, losses, jnp.ones(8)):
    assert direction == {'nothing': {}}


@every_element
def test_a_scalar_parameter_is_accepted(name):
  losses = lambda w, batch: jnp.square(w - batch)
  batch = jnp.linspace(0.5, 1.0, 8)
  for direction, state in steps_of(name, jnp.float32(3.0), losses, batch):
    assert direction.shape == ()
    assert 1 < direction < 100
    assert comparisons.all_finite(state)


@every_element
def test_leaves_without_entries_are_accepted(name):
  losses = lambda p, batch: batch * jnp.sum(p['w'] ** 2) + jnp.sum(p['empty'])
  params = {'empty': jnp.zeros((0, 3)), 'w': jnp.ones((2,))}
  for direction, state in steps_of(name, params, losses, jnp.ones(8)):
    assert direction['empty'].shape == (0, 3)
    assert comparisons.all_finite((direction, state))
