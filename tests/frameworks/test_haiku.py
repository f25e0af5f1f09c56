"""Haiku: batch norm with a state, one key for both passes."""

import haiku as hk
import jax
import jax.numpy as jnp
import optax

import optax_sam
from tests.frameworks import by_hand

STRICT = False  # Haiku needs promotion
RHO = 0.1


def network(x):
  x = hk.BatchNorm(True, True, 0.9)(hk.Linear(16)(x), is_training=True)
  x = hk.dropout(hk.next_rng_key(), 0.3, jnp.tanh(x))
  return hk.Linear(1)(x)[:, 0]


forward = hk.transform_with_state(network)


def loss_fn(params, state, key, x, y):
  predictions, state = forward.apply(params, state, key, x)
  return jnp.mean((predictions - y) ** 2), state


def train(method):
  x = jax.random.normal(jax.random.key(1), (6, 12, 5))
  y = jnp.sum(jnp.sin(x), axis=2)
  params, state = forward.init(jax.random.key(0), x[0])
  tx = optax.chain(method or optax.identity(), optax.sgd(0.1, momentum=0.9))
  opt_state = tx.init(params)

  @jax.jit
  def step(params, state, opt_state, key, *batch):
    grad_fn = jax.grad(loss_fn, has_aux=True)
    grads, new_state = grad_fn(params, state, key, *batch)
    if method is None:
      moved = by_hand.ascend(params, grads, RHO)
      grads, _ = grad_fn(moved, state, key, *batch)
      updates, opt_state = tx.update(grads, opt_state, params)
    else:
      value_fn = lambda p: loss_fn(p, state, key, *batch)[0]
      updates, opt_state = tx.update(
        grads, opt_state, params, value_fn=value_fn
      )
    return optax.apply_updates(params, updates), new_state, opt_state

  for i, batch in enumerate(zip(x, y, strict=True)):
    key = jax.random.key(i)
    params, state, opt_state = step(params, state, opt_state, key, *batch)
  return params, state


def test_training_equals_sam_by_hand():
  assert by_hand.distance(train(optax_sam.sam(RHO)), train(None)) < 1e-6
