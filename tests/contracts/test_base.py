"""Where every method is the base optimizer, and what bad gradients leave."""

import jax
import jax.numpy as jnp
import optax
import pytest

import optax_sam
from tests.contracts import comparisons, table, training


def _neutral(name):
  """Returns (method, its step) with which rho=0 is the base optimizer."""
  neutral = table.ROWS[name].neutral
  if not neutral:
    return training.compiled_injected(name)
  tx = optax.chain(table.ROWS[name].injected(**neutral), training.base())
  return tx, training.jit(training.training_step(tx))


@table.every_row()
def test_rho_0_is_the_base_optimizer_bit_for_bit(name):
  base, base_step = training.compiled_base()
  theirs = training.train(base_step, training.start(base), range(6))
  # As an argument of the program rather than a constant, so that the
  # compiler can't drop the perturbation.
  tx, step = _neutral(name)
  params, state = training.start(tx)
  if table.ROWS[name].perturbs:
    state[0].hyperparams[table.ROWS[name].radius] = jnp.float32(0)
  params, state = training.train(step, (params, state), range(6))
  assert int(optax_sam.metrics(state)['second_gradients']) > 0
  is_same = (
    comparisons.assert_close
    if table.ROWS[name].rounds
    else comparisons.assert_equal
  )
  is_same((params, *state[1:]), theirs)


@table.every_row(rounds=False)
def test_rho_0_is_the_base_optimizer_outside_of_jit(name):
  row = table.ROWS[name]
  method = row(0.0, **row.neutral)
  params = training.params()
  state = method.init(params)
  for t in range(3):
    given = training.functions(training.batch(t))
    given['grad_fn'] = lambda p, t=t: _gradient(p, training.batch(t))
    grads = given['grad_fn'](params)
    updates, state = method.update(grads, state, params, **given)
    comparisons.assert_equal(updates, grads)


_gradient = jax.jit(jax.grad(training.loss))


@table.every_row()
@pytest.mark.parametrize('warm_up', [0, 4])
def test_a_zero_gradient_is_the_base_step(name, warm_up):
  tx, step = training.compiled(name)
  params, state = training.train(step, training.start(tx), range(warm_up))
  flat = training.batch()
  flat['weight'] = jnp.zeros_like(flat['weight'])
  ours = step(params, state, flat)
  _, base_step = training.compiled_base()
  theirs = base_step(params, *state[1:], flat)
  comparisons.assert_equal((ours[0], *ours[1][1:]), theirs)
  assert comparisons.all_finite(ours)


@table.every_row()
@pytest.mark.parametrize('bad', [jnp.inf, -jnp.inf, jnp.nan])
@pytest.mark.parametrize('warm_up', [0, 4])
def test_a_gradient_that_is_not_finite_leaves_the_statistics(
  name, bad, warm_up
):
  tx, step = training.compiled(name)
  params, state = training.train(step, training.start(tx), range(warm_up))
  spoilt = training.batch(warm_up)
  spoilt['y'] = spoilt['y'].at[:, 1].set(bad)
  bad_params, after = step(params, state, spoilt)
  assert not comparisons.all_finite(bad_params)
  comparisons.assert_equal(_statistics(after[0]), _statistics(state[0]))
  assert _counts(after[0]) == [count + 1 for count in _counts(state[0])]

  # As if the base optimizer had rejected that step, training goes on.
  accepted = (params, (after[0], *state[1:]))
  later = training.train(step, accepted, range(5, 10))
  assert comparisons.all_finite(later)
  assert _counts(later[1][0]) == [count + 6 for count in _counts(state[0])]


@table.every_row(needs_examples=False, ignores_gradient=False, needs_loss=False)
def test_one_infinite_entry_of_the_clean_gradient_alone(name):
  # With a finite second gradient, as behind a loss scale.
  tx, params = table.ROWS[name](), training.params()
  grad_fn = lambda p: _gradient(p, training.batch())
  good = grad_fn(params)
  _, state = tx.update(good, tx.init(params), params, grad_fn=grad_fn)
  bad = {**good, 'norm': {'scale': good['norm']['scale'].at[0].set(jnp.inf)}}
  for before in (tx.init(params), state):
    _, after = tx.update(bad, before, params, grad_fn=grad_fn)
    comparisons.assert_equal(_statistics(after), _statistics(before))


def _statistics(state):
  """Returns all that a method stores, but for counts and logs."""
  kept = {}
  stored = state._replace(info=None)
  for path, leaf in jax.tree.leaves_with_path(stored):
    where = jax.tree_util.keystr(path)
    if not where.endswith('count'):
      kept[where] = leaf
  return kept


def _counts(state):
  return [
    int(leaf)
    for path, leaf in jax.tree.leaves_with_path(state._replace(info=None))
    if jax.tree_util.keystr(path).endswith('count')
  ]
