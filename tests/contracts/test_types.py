"""A step preserves the types of state and updates.

So `jax.lax.scan` accepts a step, and no function compiles twice.
"""

import jax
import jax.numpy as jnp
import optax
import pytest

import optax_sam
from tests.contracts import comparisons, table, training


def _stepped(tx, params, grads, state, losses=training.losses):
  """Returns the types of (updates, state) after a step."""
  given = training.functions(training.batch(), losses)
  # Base optimizers promote dtypes.
  with jax.numpy_dtype_promotion('standard'):
    updates, after = jax.eval_shape(
      lambda g, s, p: tx.update(g, s, p, **given), grads, state, params
    )
  return comparisons.types(updates), comparisons.types(after)


@table.every_kind()
def test_types_are_stable(name):
  row = table.ROWS[name]
  for params_dtype, grads_dtype in (
    ('bfloat16', 'bfloat16'),
    ('float16', 'float16'),
    ('float64', 'float64'),
    ('float32', 'bfloat16'),
    ('bfloat16', 'float32'),
    ('float16', 'float32'),
  ):
    with jax.enable_x64(params_dtype == 'float64'):
      tx, params = row.alone(), training.params(params_dtype)
      grads, state = training.params(grads_dtype), tx.init(params)
      updates, after = _stepped(tx, params, grads, state)
      expected = comparisons.types((grads, row.of_method(state)))
      assert row.of_method(after) == expected[1]
      if row.place != 'wraps':  # types of the base optimizer
        assert updates == expected[0]


@table.every_kind(table.in_chain)
def test_float64_and_float32_leaves_keep_their_dtypes(name):
  with jax.enable_x64(True):
    tx = table.ROWS[name].alone()
    params = training.params('float32')
    params['norm'] = training.params('float64')['norm']

    # A network that casts its parameters.
    def losses(p, batch):
      single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), p)
      return training.losses(single, batch)

    state = tx.init(params)
    updates, after = _stepped(tx, params, params, state, losses)
    assert (updates, after) == comparisons.types((params, state))
    assert after.info.ascent_norm[0] == jnp.float64


@table.every_kind(table.in_chain)
def test_weakly_typed_parameters_are_accepted(name):
  tx = table.ROWS[name].alone()
  params = jax.tree.map(
    lambda leaf: jax.lax.full_like(leaf, 0.5) * 1.0, training.params()
  )
  params['norm']['scale'] = jnp.broadcast_to(jnp.asarray(1.0), (2,))
  assert params['norm']['scale'].weak_type
  state = tx.init(params)
  assert not any(comparisons.is_weak(leaf) for leaf in jax.tree.leaves(state))
  grads = jax.grad(training.loss)(params, training.batch())
  assert _stepped(tx, params, grads, state)[1] == comparisons.types(state)


@table.every_kind(lambda row: row.radius and row.place == 'chain')
def test_schedules_and_arrays_are_accepted_as_radius(name):
  params = training.params()
  for rho in (optax.constant_schedule(0.1), jnp.asarray(0.1, jnp.float16)):
    tx = table.ROWS[name].alone(rho)
    state = tx.init(params)
    found = _stepped(tx, params, params, state)
    assert found == comparisons.types((params, state))


@table.every_method(lambda row: 'accumulator_dtype' in row.parameters)
def test_state_like_the_parameters_has_the_chosen_dtype(name):
  row, params = table.METHODS[name], {'w': jnp.linspace(0.5, 2.0, 16)}
  state = row.alone(accumulator_dtype=jnp.bfloat16).init(params)
  dtypes = {x.dtype for x in jax.tree.leaves(state) if x.shape == (16,)}
  assert dtypes == {jnp.dtype('bfloat16')}


@pytest.mark.parametrize(('size', 'count'), [(1e-4, 10), (60.0, 4096)])
def test_norms_of_half_precision_trees_are_accurate(size, count):
  """In float16, squares of 1e-4 underflow and sums of many overflow."""
  tx = optax_sam.sam(1.0)
  gradient = jnp.full(count, size, jnp.float16)
  params = jnp.zeros(count, jnp.float32)
  epsilon, state = tx.update(
    gradient, tx.init(params), params, grad_fn=lambda w: w
  )
  norm = float(jnp.linalg.norm(epsilon.astype(jnp.float32)))
  assert norm == pytest.approx(1.0, rel=1e-3)
  wanted = pytest.approx(size * count**0.5, rel=1e-3)
  assert float(state.info.ascent_norm) == wanted
