"""Schedules of rho: at the count before the increment, from 0 on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_sam
from tests.contracts import table

_RADII = jnp.array([0.3, 0.0, 0.1, 0.2])


def _trained(tx, steps):
  tx = optax.chain(tx, table.base())
  params = table.params()
  step = jax.jit(table.training_step(tx))
  return table.train(step, (params, tx.init(params)), range(steps))


@table.every_row()
def test_equal_to_steps_with_constant_radii(name):
  row = table.ROWS[name]
  scheduled, state = _trained(row(lambda count: _RADII[count]), 4)

  tx = optax.chain(row.injected(), table.base())
  params = table.params()
  opt_state = tx.init(params)
  step = jax.jit(table.training_step(tx))
  for t, rho in enumerate(_RADII):
    opt_state[0].hyperparams['rho'] = rho
    params, opt_state = step(params, opt_state, table.batch(t))
  table.assert_close(scheduled, params)

  # One that skips advances it all the same.
  counts = optax.tree.get_all_with_path(state[0].perturbation, 'count')
  assert [int(count) for _, count in counts] == [4]


@table.every_row()
def test_an_array_as_the_radius(name):
  row = table.ROWS[name]
  by_array, _ = _trained(row(jnp.asarray(0.05)), 2)
  by_number, _ = _trained(row(0.05), 2)
  by_numpy, _ = _trained(row(np.float32(0.05)), 2)
  table.assert_close(by_array, by_number)
  table.assert_close(by_numpy, by_number)


def test_a_schedule_of_another_dtype():
  # As one that is computed from the count alone.
  integers = lambda count: jnp.minimum(count, 1)
  scheduled, _ = _trained(optax_sam.sam(integers), 1)
  constant, _ = _trained(optax_sam.sam(0.0), 1)
  table.assert_equal(scheduled, constant)


def test_a_schedule_of_the_probability():
  tx = optax_sam.ss_sam(
    0.05, probability=lambda count: jnp.where(count < 2, 1.0, 0.0), key=0
  )
  _, state = _trained(tx, 4)
  assert int(state[0].info.second_gradients) == 2
