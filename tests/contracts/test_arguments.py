"""What `update` takes, ignores and asks for."""

import jax
import jax.numpy as jnp
import optax
import pytest

import optax_sam
from tests.contracts import comparisons, table, training

# Optax's own transformations promote dtypes implicitly.
STRICT = False


def _update(tx, **extra):
  params = training.params()
  grads = jax.grad(training.loss)(params, training.batch())
  return tx.update(grads, tx.init(params), params, **extra)


@table.every_row()
def test_unexpected_arguments_are_ignored(name):
  tx = table.ROWS[name]()
  given = training.functions(training.batch())
  plain = _update(tx, **given)
  arrays = {'value': jnp.float32(1), 'grad': None}
  comparisons.assert_equal(plain, _update(tx, **given, **arrays))
  # Beside something that is no array, another program does the same.
  crowded = _update(tx, **given, **arrays, unheard_of='word')
  comparisons.assert_close(*map(comparisons.without_keys, (plain, crowded)))


@table.every_row()
def test_in_a_chain_whose_rest_wants_other_arguments(name):
  tx = optax.chain(
    table.ROWS[name](),
    optax.contrib.reduce_on_plateau(patience=1, cooldown=0, factor=0.5),
    optax.sgd(0.1),
  )
  params = training.params()
  state = tx.init(params)

  @jax.jit
  def step(params, state):
    given = training.functions(training.batch())
    value, grads = jax.value_and_grad(given['value_fn'])(params)
    updates, state = tx.update(
      grads, state, params, value=jnp.maximum(value, 1e3), **given
    )
    return optax.apply_updates(params, updates), state

  for _ in range(3):
    params, state = step(params, state)
  # No progress, as far as it was told.
  assert float(state[1].scale) == pytest.approx(0.25)
  assert comparisons.all_finite(params)


def test_before_a_line_search():
  # The search evaluates the same value_fn along the direction of the method.
  tx = optax.chain(
    optax_sam.sam(0.05),
    optax.sgd(1.0),
    optax.scale_by_backtracking_linesearch(max_backtracking_steps=15),
  )
  params, batch = training.params(), training.batch()
  value_fn = lambda p: training.loss(p, batch)
  value, grads = jax.value_and_grad(value_fn)(params)
  updates, _ = tx.update(
    grads, tx.init(params), params, value=value, grad=grads, value_fn=value_fn
  )
  assert float(value_fn(optax.apply_updates(params, updates))) < float(value)


@table.every_row(needs_examples=False)
def test_any_of_the_functions_will_do(name):
  tx = table.ROWS[name]()
  given = training.functions(training.batch())
  grad_fn = jax.grad(given['value_fn'])
  by_value, state = _update(tx, value_fn=given['value_fn'])
  # Beside which a loss may be asked for.
  loss = given if table.ROWS[name].needs_loss else {}
  by_grad, _ = _update(tx, **loss, grad_fn=grad_fn)
  by_both, both = _update(tx, grad_fn=jax.value_and_grad(given['value_fn']))
  del given['value_fn']
  by_example, _ = _update(tx, **given)
  comparisons.assert_close(by_value, by_grad)
  comparisons.assert_close(by_value, by_both)
  comparisons.assert_close(by_value, by_example)
  comparisons.assert_close(state.info, both.info)


def test_grad_fn_goes_before_value_fn():
  def value_fn(_):
    raise AssertionError

  grad_fn = lambda p: jax.tree.map(jnp.ones_like, p)
  updates, _ = _update(optax_sam.sam(), value_fn=value_fn, grad_fn=grad_fn)
  comparisons.assert_equal(updates, grad_fn(updates))


@table.every_row()
def test_a_missing_function_is_asked_for(name):
  with pytest.raises(ValueError, match=r'updates, opt_state = tx\.update\('):
    _update(_ascending(name))


@table.every_row()
def test_missing_params_are_asked_for(name):
  tx = table.ROWS[name]()
  with pytest.raises(ValueError, match=r'params must be given: write tx\.up'):
    tx.update(
      training.params(), tx.init(training.params()), value_fn=training.loss
    )


@table.every_row(needs_examples=False)
def test_a_value_with_more_than_the_value(name):
  value_fn = lambda p: (training.loss(p, training.batch()), {'accuracy': 1.0})
  with pytest.raises(
    ValueError, match=r'a scalar, got shape \(.*: write .*\[0\]'
  ):
    _update(_ascending(name), value_fn=value_fn)


def test_a_value_of_some_shape():
  value_fn = lambda p: training.losses(p, training.batch())
  with pytest.raises(ValueError, match=r'a scalar, got shape \(8,\)'):
    _update(optax_sam.sam(), value_fn=value_fn)


def test_a_grad_fn_that_returns_something_else():
  with pytest.raises(ValueError, match='grad_fn must return a gradient'):
    _update(optax_sam.sam(), grad_fn=lambda p: p['dense'])


def with_more(w):
  return jnp.sum(w**2), jnp.float32(7)


@pytest.mark.parametrize(
  'grad_fn',
  [
    jax.grad(with_more, has_aux=True),
    jax.value_and_grad(with_more, has_aux=True),
    lambda w: (w, jnp.sum(w)),
    lambda w: (w, w),
    jnp.sum,
  ],
)
def test_what_stands_beside_the_gradient_is_not_taken_for_it(grad_fn):
  # One array has the structure of any other.
  w = jnp.array([3.0, 4.0])
  tx = optax_sam.sam()
  with pytest.raises(ValueError, match=r'has_aux=True, hand on what is asked'):
    tx.update(w, tx.init(w), w, grad_fn=grad_fn)


@table.every_row(needs_examples=True)
def test_losses_with_more_than_the_losses(name):
  with pytest.raises(ValueError, match=r'one loss an example, .* shape \(\('):
    _update(
      table.ROWS[name](),
      per_example_value_fn=lambda p, b: (training.losses(p, b), b['y']),
      batch=training.batch(),
    )


@table.every_row(needs_examples=True)
def test_losses_of_the_wrong_shape(name):
  with pytest.raises(ValueError, match=r'one loss an example, shape \(.,\)'):
    _update(
      table.ROWS[name](),
      per_example_value_fn=training.loss,
      batch=training.batch(),
    )


@table.every_row(needs_examples=True)
@pytest.mark.parametrize(
  'wrong', [{'x': jnp.ones(8), 'y': jnp.ones(7)}, jnp.float32(1)]
)
def test_a_batch_without_an_axis_of_examples(name, wrong):
  with pytest.raises(ValueError, match='batch must be a pytree whose leaves'):
    _update(
      table.ROWS[name](), per_example_value_fn=training.losses, batch=wrong
    )


def _ascending(name):
  """Returns a method that takes the second gradient at the first step."""
  row = table.ROWS[name]
  return row(**row.ascending)
