"""Types of the state and of the updates: the same after as before.

So that `jax.lax.scan` takes a step as it is, and that nothing compiles twice.
"""

import jax
import jax.numpy as jnp
import optax
import pytest

from tests.contracts import comparisons, table, training

_DTYPES = ['bfloat16', 'float16', 'float32', 'float64']


def _types(tree):
  """Returns the structure of a tree and the type of every leaf of it."""
  return jax.tree.map(
    lambda leaf: (leaf.dtype, leaf.shape, _is_weak(leaf)), tree
  )


def _is_weak(leaf):
  return getattr(leaf, 'weak_type', False)  # keys have none


def _stepped(tx, params, grads, state):
  given = training.functions(training.batch())
  return jax.eval_shape(
    lambda g, s, p: tx.update(g, s, p, **given), grads, state, params
  )


@table.every_row()
@pytest.mark.parametrize('params_dtype', _DTYPES)
def test_types_are_stable(name, params_dtype):
  with jax.enable_x64(params_dtype == 'float64'):
    tx = table.ROWS[name]()
    params = training.params(params_dtype)
    state = tx.init(params)
    updates, after = _stepped(tx, params, params, state)
    assert _types(updates) == _types(params)
    assert _types(after) == _types(state)


@table.every_row()
@pytest.mark.parametrize(
  ('params_dtype', 'grads_dtype'),
  [('float32', 'bfloat16'), ('bfloat16', 'float32'), ('float16', 'float32')],
)
def test_gradients_of_another_dtype(name, params_dtype, grads_dtype):
  tx = table.ROWS[name]()
  params = training.params(params_dtype)
  grads = training.params(grads_dtype)
  state = tx.init(params)
  updates, after = _stepped(tx, params, grads, state)
  assert _types(updates) == _types(grads)
  assert _types(after) == _types(state)


@table.every_row()
def test_double_precision_beside_single(name):
  with jax.enable_x64(True):
    tx = table.ROWS[name]()
    params = training.params('float32')
    params['norm'] = training.params('float64')['norm']

    # A network that casts its parameters itself.
    def losses(p, batch):
      single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), p)
      return training.losses(single, batch)

    state = tx.init(params)
    given = training.functions(training.batch(), losses)
    updates, after = jax.eval_shape(
      lambda g, s, p: tx.update(g, s, p, **given), params, state, params
    )
    assert _types(updates) == _types(params)
    assert _types(after) == _types(state)
    assert after.info.ascent_norm.dtype == jnp.float64


@table.every_row()
def test_weakly_typed_parameters(name):
  tx = table.ROWS[name]()
  params = jax.tree.map(
    lambda leaf: jax.lax.full_like(leaf, 0.5) * 1.0, training.params()
  )
  params['norm']['scale'] = jnp.broadcast_to(jnp.asarray(1.0), (2,))
  assert params['norm']['scale'].weak_type
  state = tx.init(params)
  assert not any(jax.tree.leaves(jax.tree.map(_is_weak, state)))
  grads = jax.grad(training.loss)(params, training.batch())
  _, after = _stepped(tx, params, grads, state)
  assert _types(after) == _types(state)


@table.every_row()
def test_types_are_stable_outside_of_jit(name):
  tx, params = table.ROWS[name](), training.params()
  state, given = tx.init(params), training.functions(training.batch())
  grads = jax.grad(given['value_fn'])(params)
  for _ in range(2):
    updates, after = tx.update(grads, state, params, **given)
    assert _types(updates) == _types(params)
    assert _types(after) == _types(state)
    state = after


def test_complex_parameters_that_are_left_out_descend():
  loss = lambda p: jnp.sum(p['w'] ** 4) + jnp.sum(jnp.abs(p['c']) ** 2)
  params = {'w': jnp.ones(2), 'c': jnp.ones(2, jnp.complex64)}
  grads = jax.grad(loss)(params)
  is_real = lambda leaf: not jnp.iscomplexobj(leaf)
  for mask in ({'w': True, 'c': False}, lambda p: jax.tree.map(is_real, p)):
    tx = table.METHODS['sam'](0.1, mask=mask)
    updates, _ = tx.update(grads, tx.init(params), params, value_fn=loss)
    comparisons.assert_equal(updates['c'], grads['c'])
    assert float(updates['w'][0]) > float(grads['w'][0])


def test_a_python_number_as_the_loss():
  tx, params = table.ROWS['sam'](), training.params()
  gradient = jax.grad(training.functions(training.batch())['value_fn'])
  state = tx.init(params)
  _, after = tx.update(
    params, state, params, grad_fn=lambda params: (0.5, gradient(params))
  )
  assert _types(after) == _types(state)


@table.every_row(perturbs=True)
def test_a_schedule_and_an_array_as_the_radius(name):
  params = training.params()
  for rho in (optax.constant_schedule(0.1), jnp.asarray(0.1, jnp.float16)):
    tx = table.ROWS[name](rho)
    state = tx.init(params)
    updates, after = _stepped(tx, params, params, state)
    assert _types(updates) == _types(params)
    assert _types(after) == _types(state)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
@table.every_row()
def test_statistics_are_single_precision_at_least(name, dtype):
  row = table.ROWS[name]
  chosen = row.arguments.get('accumulator_dtype')
  found = {
    leaf.dtype
    for leaf in jax.tree.leaves(row().init(training.params(dtype)))
    if jnp.issubdtype(leaf.dtype, jnp.floating)
  }
  assert found - {jnp.dtype('float32')} == (
    set() if chosen is None else {jnp.dtype(chosen)}
  )


def test_a_norm_that_half_precision_cannot_hold():
  # Squares of 1e-4 vanish in float16, and sums of many overflow.
  for size, count in ((1e-4, 10), (60.0, 4096)):
    tx = table.METHODS['sam'](1.0)
    gradient = jnp.full(count, size, jnp.float16)
    params = jnp.zeros(count, jnp.float32)
    epsilon, state = tx.update(
      gradient, tx.init(params), params, grad_fn=lambda w: w
    )
    norm = float(jnp.linalg.norm(epsilon.astype(jnp.float32)))
    assert norm == pytest.approx(1.0, rel=1e-3)
    assert float(state.info.ascent_norm) == pytest.approx(
      size * count**0.5, rel=1e-3
    )
