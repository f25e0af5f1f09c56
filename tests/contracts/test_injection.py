"""Every method inside `optax.inject_hyperparams`, and schedules of rho."""

import collections
import inspect
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_sam
from optax_sam import catalog
from tests.contracts import comparisons, table, training

_RADII = jnp.array([0.3, 0.0, 0.1, 0.2])


def _trained(tx, steps=4):
  """Returns (params, state) after some steps of an optimizer."""
  step = jax.jit(training.training_step(tx))
  return training.train(step, training.start(tx), range(steps))


@table.every_kind()
def test_injected_hyperparameters_give_the_same_steps(name):
  row, program = table.ROWS[name], training.program(name)
  start = training.start(program.tx)
  params, state = training.train(program.step, start, range(4))
  comparisons.assert_close(params, _trained(row.whole())[0])
  assert float(row.part(state).hyperparams[row.radius]) == np.float32(0.05)


@table.every_kind()
def test_a_schedule_equals_radii_set_by_hand(name):
  """A schedule gets the step count before the increment, from 0.

  Injected hyperparameters can change without recompilation.
  """
  row, program = table.ROWS[name], training.program(name)
  scheduled, state = _trained(row.whole(lambda count: _RADII[count]))
  params, opt_state = training.start(program.tx)
  for t, rho in enumerate(_RADII):
    row.part(opt_state).hyperparams[row.radius] = rho
    params, opt_state = program.step(params, opt_state, training.batch(t))
  assert program.donating._cache_size() == 1
  comparisons.assert_close(scheduled, params)
  if row.place == 'chain':
    # A skipped step advances the schedule too.
    counts = optax.tree.get_all_with_path(state[0].perturbation, 'step_count')
    assert {int(count) for _, count in counts} == {4}


def test_functions_that_are_no_schedules_are_static():
  """Otherwise `optax.inject_hyperparams` would call them with the step."""
  for name, row in catalog.METHODS.items():
    built = inspect.signature(row.function)
    if not hasattr(row.function, '__wrapped__'):
      continue
    plain = inspect.signature(row.function.__wrapped__)
    for x in plain.parameters.values():
      kinds = typing.get_args(x.annotation)
      takes_any = typing.Any in kinds and any(map(_is_callable, kinds))
      assert not takes_any or x.name in built.static, (name, x.name)


def _is_callable(kind):
  return typing.get_origin(kind) is collections.abc.Callable


def test_a_function_that_chooses_the_scaled_leaves_of_asam_is_injected():
  scaled = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
  w = {'k': jnp.full((2, 2), 3.0), 'c': jnp.ones(2)}
  loss = lambda w: jnp.sum(w['k'] ** 4) + jnp.sum(w['c'] ** 4)
  found = []
  for build in (optax_sam.asam, optax.inject_hyperparams(optax_sam.asam)):
    tx = build(rho=0.5, scaled=scaled)
    found.append(tx.update(jax.grad(loss)(w), tx.init(w), w, value_fn=loss)[0])
  comparisons.assert_close(*found)


def test_a_schedule_may_return_another_dtype():
  """For example one that is computed only from the count."""
  tx = optax_sam.sam(lambda count: count + 1)
  gradient, radius = jnp.array([3.0, 4.0]), jnp.array([0.6, 0.8])
  state = tx.init(gradient)
  for t in range(3):
    found, state = tx.update(gradient, state, jnp.zeros(2), grad_fn=lambda w: w)
    np.testing.assert_allclose(found, (t + 1) * radius, rtol=1e-6)


def test_a_schedule_of_the_probability_is_followed():
  tx = optax_sam.ss_sam(
    0.05, probability=lambda count: jnp.where(count < 2, 1.0, 0.0), key=0
  )
  gradient = jnp.array([3.0, 4.0])
  state, ascended = tx.init(gradient), []
  for _ in range(4):
    _, state = tx.update(gradient, state, gradient, grad_fn=lambda w: w)
    ascended.append(bool(state.info.ascended))
  assert ascended == [True, True, False, False]
