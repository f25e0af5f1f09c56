"""Equinox with batch norm and dropout: a stateful model, and a key."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import optax_sam
from optax_sam.equinox import equinox_value_fn
from tests.frameworks import by_hand

STRICT = False  # batch norm of Equinox needs promotion
RHO = 0.1


class Network(eqx.Module):
  hidden: eqx.nn.Linear
  norm: eqx.nn.BatchNorm
  dropout: eqx.nn.Dropout
  out: eqx.nn.Linear

  def __init__(self, key):
    first, second = jax.random.split(key)
    self.hidden = eqx.nn.Linear(6, 16, key=first)
    self.norm = eqx.nn.BatchNorm(16, axis_name='batch', mode='batch')
    self.dropout = eqx.nn.Dropout(0.3)
    self.out = eqx.nn.Linear(16, 'scalar', key=second)

  def __call__(self, x, state, key):
    x, state = self.norm(self.hidden(x), state)
    return self.out(self.dropout(jax.nn.tanh(x), key=key)), state


def loss_fn(model, state, x, y, key):
  keys = jax.random.split(key, len(x))
  of_batch = jax.vmap(
    model, axis_name='batch', in_axes=(0, None, 0), out_axes=(0, None)
  )
  predictions, state = of_batch(x, state, keys)
  return jnp.mean((predictions - y) ** 2), state


def train_step(model, state, opt_state, tx, *batch):
  value_fn = equinox_value_fn(model, loss_fn, state, *batch)
  grad_fn = eqx.filter_grad(loss_fn, has_aux=True)
  grads, state = grad_fn(model, state, *batch)
  params = eqx.filter(model, eqx.is_inexact_array)
  updates, opt_state = tx.update(grads, opt_state, params, value_fn=value_fn)
  return eqx.apply_updates(model, updates), state, opt_state


def step_by_hand(model, state, opt_state, tx, *batch):
  grad_fn = eqx.filter_grad(loss_fn, has_aux=True)
  grads, new_state = grad_fn(model, state, *batch)
  params, static = eqx.partition(model, eqx.is_inexact_array)
  moved = eqx.combine(by_hand.ascend(params, grads, RHO), static)
  grads, _ = grad_fn(moved, state, *batch)
  updates, opt_state = tx.update(grads, opt_state, params)
  return eqx.apply_updates(model, updates), new_state, opt_state


def train(step, method):
  model, state = eqx.nn.make_with_state(Network)(jax.random.key(0))
  tx = optax.chain(method, optax.sgd(0.1, momentum=0.9))
  opt_state = tx.init(eqx.filter(model, eqx.is_inexact_array))
  step = eqx.filter_jit(step)
  for i in range(6):
    key = jax.random.key(i)
    x = jax.random.normal(key, (12, 6))
    batch = (x, jnp.sum(jnp.sin(x), axis=1), key)
    model, state, opt_state = step(model, state, opt_state, tx, *batch)
  return eqx.filter((model, state), eqx.is_array)


def test_training_equals_sam_by_hand():
  found = train(train_step, optax_sam.sam(RHO))
  expected = train(step_by_hand, optax.identity())
  assert by_hand.distance(found, expected) < 1e-6
