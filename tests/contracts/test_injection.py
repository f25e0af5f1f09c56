"""`optax.inject_hyperparams` around every method, and schedules of rho."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests.contracts import comparisons, table, training

_RADII = jnp.array([0.3, 0.0, 0.1, 0.2])


@table.every_row()
def test_same_updates_as_without(name):
  tx, step = training.compiled_injected(name)
  params, state = training.train(step, training.start(tx), range(4))
  tx, step = training.compiled(name)
  expected, _ = training.train(step, training.start(tx), range(4))
  comparisons.assert_close(params, expected)
  if table.ROWS[name].perturbs:
    radius = state[0].hyperparams[table.ROWS[name].radius]
    assert float(radius) == np.float32(0.05)


@table.every_row(perturbs=True)
def test_a_schedule_equals_radii_set_by_hand(name):
  # The schedule is read at the count before the increment, from 0 on, and
  # what was injected can be changed without compiling again.
  tx = optax.chain(
    table.ROWS[name](lambda count: _RADII[count]), training.base()
  )
  step = jax.jit(training.training_step(tx))
  scheduled, state = training.train(step, training.start(tx), range(4))

  tx, step = training.compiled_injected(name)
  params, opt_state = training.start(tx)
  for t, rho in enumerate(_RADII):
    opt_state[0].hyperparams[table.ROWS[name].radius] = rho
    params, opt_state = step(params, opt_state, training.batch(t))
  assert step._cache_size() == 1
  comparisons.assert_close(scheduled, params)

  # A step that skips advances the schedule all the same.
  counts = optax.tree.get_all_with_path(state[0].perturbation, 'count')
  assert {int(count) for _, count in counts} == {4}


@table.every_row()
def test_without_static_args_the_error_says_what_to_write(name):
  row = table.ROWS[name]
  build = dataclasses.replace(row, static=()).injected
  if not row.static:
    build().init(training.params())
    return
  with pytest.raises(ValueError, match=r"write static_args=\('.*',\)") as info:
    build().init(training.params())
  assert any(f"('{name}',)" in str(info.value) for name in row.static)


@pytest.mark.parametrize('name', ['sam', 'ae_look_sam'])
def test_a_schedule_of_the_wrapper(name):
  schedule = optax.linear_schedule(0.0, 0.4, 4)
  trained = []
  for build in (table.ROWS[name], table.ROWS[name].injected):
    tx = optax.chain(build(schedule), training.base())
    step = jax.jit(training.training_step(tx))
    trained.append(training.train(step, training.start(tx), range(4))[0])
  comparisons.assert_close(*trained)


@table.every_row(perturbs=True)
def test_an_array_as_the_radius(name):
  params, given = training.params(), training.functions(training.batch())
  grads = jax.grad(given['value_fn'])(params)

  def update(rho):
    tx = table.ROWS[name](rho)
    return tx.update(grads, tx.init(params), params, **given)

  by_number = update(0.05)
  comparisons.assert_equal(update(jnp.asarray(0.05)), by_number)
  comparisons.assert_equal(update(np.float32(0.05)), by_number)


def test_a_schedule_of_another_dtype():
  # As one that is computed from the count alone.
  tx = optax_sam.sam(lambda count: count + 1)
  gradient, radius = jnp.array([3.0, 4.0]), jnp.array([0.6, 0.8])
  state = tx.init(gradient)
  for t in range(3):
    found, state = tx.update(gradient, state, jnp.zeros(2), grad_fn=lambda w: w)
    np.testing.assert_allclose(found, (t + 1) * radius, rtol=1e-6)


def test_a_schedule_of_the_probability():
  tx = optax_sam.ss_sam(
    0.05, probability=lambda count: jnp.where(count < 2, 1.0, 0.0), key=0
  )
  gradient = jnp.array([3.0, 4.0])
  state, ascended = tx.init(gradient), []
  for _ in range(4):
    _, state = tx.update(gradient, state, gradient, grad_fn=lambda w: w)
    ascended.append(bool(state.info.ascended))
  assert ascended == [True, True, False, False]


def test_booleans_need_no_static_args():
  factory = optax.inject_hyperparams(optax_sam.look_sam)
  factory(0.05, per_leaf=True).init(training.params())
