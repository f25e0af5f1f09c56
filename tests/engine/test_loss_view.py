"""Valid and invalid loss functions in the arguments of `update`."""

import jax
import jax.numpy as jnp
import pytest

import optax_sam
from tests.contracts import comparisons, table, training


def test_grad_fn_takes_precedence_over_value_fn():
  def value_fn(_):
    raise AssertionError

  grad_fn = lambda p: jax.tree.map(jnp.ones_like, p)
  tx, params = optax_sam.sam(), training.params()
  updates, _ = tx.update(
    params, tx.init(params), params, value_fn=value_fn, grad_fn=grad_fn
  )
  comparisons.assert_equal(updates, grad_fn(updates))


@pytest.mark.parametrize('name', ['sam', 'lookbehind'])
def test_a_loss_that_is_not_a_scalar_raises(name):
  tx, params = table.ROWS[name].alone(), training.params()
  loss = lambda p: training.loss(p, training.batch())
  for value_fn, message in (
    (lambda p: (loss(p), {'accuracy': 1.0}), r'shape \(.*: write .*\[0\]'),
    (lambda p: training.losses(p, training.batch()), r'shape \(8,\)'),
  ):
    with pytest.raises(ValueError, match='a scalar, got ' + message):
      tx.update(params, tx.init(params), params, value_fn=value_fn)


def with_more(w):
  return jnp.sum(w**2), jnp.float32(7)


@pytest.mark.parametrize(
  'grad_fn',
  [
    jax.grad(with_more, has_aux=True),
    jax.value_and_grad(with_more, has_aux=True),
    lambda w: (w, jnp.sum(w)),
    lambda w: (w, w),
    lambda w: (w, w, w),
    lambda w: {'w': w},
    jnp.sum,
  ],
)
def test_a_further_output_of_grad_fn_raises(grad_fn):
  # All single arrays have the same structure.
  w = jnp.array([3.0, 4.0])
  tx = optax_sam.sam()
  with pytest.raises(ValueError, match='grad_fn must return a gradient') as e:
    tx.update(w, tx.init(w), w, grad_fn=grad_fn)
  assert 'has_aux=True' in str(e.value)
