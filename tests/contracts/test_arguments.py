"""Arguments of `update`: required, accepted and ignored ones."""

import jax
import jax.numpy as jnp
import pytest

import optax_sam
from tests.contracts import comparisons, table, training


def _update(tx, **extra):
  params = training.params()
  grads = training.gradient(params, training.batch())

  @jax.jit
  def update(grads, state, params):
    return tx.update(grads, state, params, **extra)

  return update(grads, tx.init(params), params)


def _trace(tx, params, **extra):
  """Raises the error of a traced step."""
  jax.eval_shape(
    lambda state: tx.update(params, state, params, **extra), tx.init(params)
  )


@table.every_row()
def test_a_missing_argument_raises_with_its_name(name):
  method, tx = table.ROWS[name].method, table.ROWS[name].alone()
  params = training.params()
  asked = {
    'value_fn': r'function to differentiate.*\n.*\n +updates, opt_state = tx',
    'loss': 'value_fn',
    'examples': r'per-example losses(.*\n)+.*per_example_value_fn=f, batc',
    '': None,
  }[method.needs]
  if asked is not None:
    with pytest.raises(ValueError, match=asked):
      _trace(tx, params)
  if name == 'anti_pgd':  # which does not read params
    return
  given = {**training.functions(training.batch()), 'params': None}
  with pytest.raises(ValueError, match=r'params must be given: write tx\.up'):
    tx.update(params, tx.init(params), **given)


@table.every_kind()
def test_unexpected_arguments_are_ignored(name):
  tx, given = table.ROWS[name].alone(), training.functions(training.batch())
  more = {'value': jnp.float32(1), 'grad': None, 'unheard_of': 'word'}
  plain, crowded = _update(tx, **given), _update(tx, **given, **more)
  comparisons.assert_close(*map(comparisons.without_keys, (plain, crowded)))


@table.every_kind(lambda row: row.method.needs != 'examples')
def test_every_form_of_the_loss_gives_the_same_update(name):
  row = table.ROWS[name]
  tx, given = row.alone(), training.functions(training.batch())
  value_fn = given.pop('value_fn')
  by_value, state = _update(tx, value_fn=value_fn)
  # Some methods need the loss in addition to a gradient function.
  loss = given if row.method.needs == 'loss' else {}
  by_grad, _ = _update(tx, **loss, grad_fn=jax.grad(value_fn))
  by_both, both = _update(tx, grad_fn=jax.value_and_grad(value_fn))
  by_example, _ = _update(tx, **given)
  for found in (by_grad, by_both, by_example):
    comparisons.assert_close(by_value, found)
  comparisons.assert_close(optax_sam.metrics(state), optax_sam.metrics(both))


@table.every_kind(lambda row: row.method.needs == 'examples')
def test_wrong_losses_and_batches_raise(name):
  tx, params = table.ROWS[name].alone(), training.params()
  with_more = lambda p, b: (training.losses(p, b), b['y'])
  for function, message in (
    (with_more, r'one loss per example, .* shape \(\('),
    (training.loss, r'one loss per example, shape \(.,\)'),
  ):
    with pytest.raises(ValueError, match=message):
      _trace(tx, params, per_example_value_fn=function, batch=training.batch())
  for wrong in ({'x': jnp.ones(8), 'y': jnp.ones(7)}, jnp.float32(1)):
    with pytest.raises(ValueError, match='batch must be a pytree whose leave'):
      _trace(tx, params, per_example_value_fn=training.losses, batch=wrong)


def test_a_batch_of_another_size_than_batch_like_raises():
  tx, params = table.ROWS['sampa'].alone(), training.params()
  given = training.functions(jax.tree.map(lambda x: x[:3], training.batch()))
  with pytest.raises(ValueError, match=r'batch must be like batch_like=.*'):
    _trace(tx, params, **given)
