"""Where every method is the base optimizer, and what bad gradients leave."""

import jax
import jax.numpy as jnp
import optax
import pytest

from tests.contracts import table


def _base_step():
  return table.base(), jax.jit(table.training_step(
    optax.with_extra_args_support(table.base())
  ))


@table.every_row(rho_0_is_base=True)
def test_rho_0_is_the_base_optimizer_bit_for_bit(name):
  tx = optax.chain(table.ROWS[name](0.0), table.base())
  step = jax.jit(table.training_step(tx))
  base, base_step = _base_step()
  params = table.params()
  ours = table.train(step, (params, tx.init(params)), range(6))
  theirs = table.train(base_step, (params, base.init(params)), range(6))
  table.assert_equal(ours[0], theirs[0])
  table.assert_equal(ours[1][1:], (theirs[1],))


@table.every_row(rho_0_is_base=True)
def test_rho_0_is_the_base_optimizer_outside_of_jit(name):
  method = table.ROWS[name](0.0)
  params = table.params()
  state = method.init(params)
  for t in range(4):
    grad_fn = jax.jit(jax.grad(lambda p: table.loss(p, table.batch(t))))
    grads = grad_fn(params)
    updates, state = method.update(grads, state, params, grad_fn=grad_fn)
    table.assert_equal(updates, grads)


@table.every_row(rho_0_is_base=False)
def test_all_examples_at_rho_0_are_the_base_optimizer(name):
  everything = {
    key: 1.0
    for key in ('ascent', 'descent', 'fraction')
    if key in table.ROWS[name].arguments
  }
  tx = optax.chain(table.ROWS[name](0.0, **everything), table.base())
  step = jax.jit(table.training_step(tx))
  base, base_step = _base_step()
  params = table.params()
  ours = table.train(step, (params, tx.init(params)), range(3))
  theirs = table.train(base_step, (params, base.init(params)), range(3))
  table.assert_close(ours[0], theirs[0])


def _flat(params, batch):
  """Returns losses that depend on no parameter."""
  return 0 * params['norm']['scale'][0] * batch['x'][:, 0]


@table.every_row()
def test_a_zero_gradient_is_the_base_step(name):
  tx, step = table.compiled(name)
  params = table.params()
  # From a state with statistics in it, and from the first one.
  for before in (0, 3):
    warm, state = table.train(step, (params, tx.init(params)), range(before))
    flat_step = jax.jit(table.training_step(tx, _flat))
    ours, state_after = flat_step(warm, state, table.batch())
    zeros = jax.tree.map(jnp.zeros_like, warm)
    updates, _ = table.base().update(zeros, state[1], warm)
    table.assert_close(ours, optax.apply_updates(warm, updates), 1e-7)
    assert table.all_finite(state_after)


@table.every_row()
@pytest.mark.parametrize('bad', [jnp.inf, -jnp.inf, jnp.nan])
@pytest.mark.parametrize('warm_up', [0, 4])
def test_a_gradient_that_is_not_finite_leaves_the_statistics(
  name, bad, warm_up
):
  tx, step = table.compiled(name)
  params = table.params()
  params, state = table.train(step, (params, tx.init(params)), range(warm_up))
  spoilt = table.batch(warm_up)
  spoilt['x'] = spoilt['x'].at[:, 1].set(bad)
  _, after = step(params, state, spoilt)
  table.assert_equal(_statistics(after[0]), _statistics(state[0]))
  assert _counts(after[0]) == [count + 1 for count in _counts(state[0])]

  # As if that step had been rejected, training goes on.
  after = (after[0], *state[1:])
  later = table.train(step, (params, after), range(5, 9))
  assert table.all_finite(later)
  table.assert_equal(_counts(later[1][0]), [c + 5 for c in _counts(state[0])])


def test_one_infinite_entry_of_the_clean_gradient():
  # With a finite second gradient, as from another loss scale.
  for name, row in table.ROWS.items():
    if row.picks_examples:
      continue
    tx, params = row(), table.params()
    grads = jax.grad(table.loss)(params, table.batch())
    given = table.functions(table.batch())
    _, state = jax.jit(lambda g, s, p: tx.update(g, s, p, **given))(
      grads, tx.init(params), params
    )
    bad = jax.tree.map(lambda g: g, grads)
    bad['dense']['bias'] = bad['dense']['bias'].at[0].set(jnp.inf)
    _, after = tx.update(bad, state, params, **given)
    table.assert_equal(_statistics(after), _statistics(state))
    assert int(after.count) == 2, name


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
