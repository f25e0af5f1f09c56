"""`optax.inject_hyperparams` around every method."""

import jax
import jax.numpy as jnp
import optax
import pytest

import optax_sam
from tests.contracts import table


def _trained(tx, steps=4):
  tx = optax.chain(tx, table.base())
  params = table.params()
  step = jax.jit(table.training_step(tx))
  return table.train(step, (params, tx.init(params)), range(steps))


@table.every_row()
def test_same_updates_as_without(name):
  row = table.ROWS[name]
  params, state = _trained(row.injected())
  tx, step = table.compiled(name)
  start = table.params()
  expected, _ = table.train(step, (start, tx.init(start)), range(4))
  table.assert_close(params, expected)
  assert 'rho' in state[0].hyperparams


@table.every_row()
def test_rho_can_be_changed_without_compiling_again(name):
  row = table.ROWS[name]
  tx = optax.chain(row.injected(0.0), table.base())
  start = table.params()
  step = jax.jit(table.training_step(tx))
  params, state = step(start, tx.init(start), table.batch())
  # At the second step, so that the constant methods need both radii.
  state[0].hyperparams['rho'] = jnp.full((), 0.3, jnp.float32)
  small, large = row(0.0), row(0.3)
  params, _ = step(params, state, table.batch(1))
  assert step._cache_size() == 1

  first = optax.chain(small, table.base())
  expected, between = jax.jit(table.training_step(first))(
    start, first.init(start), table.batch()
  )
  second = optax.chain(large, table.base())
  expected, _ = jax.jit(table.training_step(second))(
    expected, between, table.batch(1)
  )
  table.assert_close(params, expected)


@table.every_row()
def test_a_schedule_of_the_wrapper(name):
  schedule = optax.linear_schedule(0.0, 0.4, 4)
  by_wrapper, _ = _trained(table.ROWS[name].injected(schedule))
  by_method, _ = _trained(table.ROWS[name](schedule))
  table.assert_close(by_wrapper, by_method)


@table.every_row()
def test_without_static_args_the_error_says_what_to_write(name):
  row = table.ROWS[name]
  if not row.static:
    pytest.skip('nothing of it shapes the program')
  factory = optax.inject_hyperparams(row.factory)
  with pytest.raises(ValueError, match=r"write static_args=\('.*',\)") as info:
    factory(0.05, **row.arguments).init(table.params())
  assert any(f"('{name}',)" in str(info.value) for name in row.static)


def test_booleans_need_no_static_args():
  factory = optax.inject_hyperparams(optax_sam.look_sam)
  factory(0.05, per_leaf=True).init(table.params())
