"""Flax linen as for ImageNet: float16, loss scaling, batch norm, replicas."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import jax_utils
from flax.training import dynamic_scale as dynamic_scale_lib

import optax_sam
from optax_sam.flax import TrainState
from tests.frameworks import by_hand

STRICT = False  # their libraries need promotion
RHO, DEVICES = 0.1, 8
# The first steps overflow in float16 and are skipped.
SCALE = 2.0**19


class Network(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.Conv(8, (3, 3), strides=2, dtype=jnp.float16)(x)
    x = nn.BatchNorm(use_running_average=False, dtype=jnp.float16)(x)
    x = jnp.mean(nn.relu(x), axis=(1, 2))
    return nn.Dense(4, dtype=jnp.float16)(x).astype(jnp.float32)


class State(TrainState):
  batch_stats: Any
  dynamic_scale: dynamic_scale_lib.DynamicScale


def train_step(state, batch, method):
  def loss_fn(params):
    logits, mutated = state.apply_fn(
      {'params': params, 'batch_stats': state.batch_stats},
      batch['image'],
      mutable=['batch_stats'],
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(
      logits, batch['label']
    )
    return jnp.mean(losses), mutated['batch_stats']

  scaled = functools.partial(
    state.dynamic_scale.value_and_grad, loss_fn, has_aux=True
  )

  def second_grad_fn(params):
    _, _, (loss, _), grads = scaled()(params)
    return loss, grads

  dynamic_scale, is_finite, aux, grads = scaled(axis_name='batch')(state.params)
  stats = jax.lax.pmean(aux[1], 'batch')
  if method is None:
    moved = by_hand.ascend(state.params, grads, RHO)
    grads = jax.lax.pmean(second_grad_fn(moved)[1], 'batch')
    moved = state.apply_gradients(grads=grads, batch_stats=stats)
  else:
    moved = state.apply_gradients(
      grads=grads, grad_fn=second_grad_fn, batch_stats=stats
    )
  keep = functools.partial(jnp.where, is_finite)
  state = jax.tree.map(keep, moved, state)
  return state.replace(dynamic_scale=dynamic_scale), is_finite


def train(method):
  key = jax.random.key(0)
  images = jax.random.normal(key, (5, DEVICES, 4, 8, 8, 3))
  labels = jax.random.randint(key, (5, DEVICES, 4), 0, 4)
  variables = jax.jit(Network().init)(key, images[0, 0])
  state = State.create(
    apply_fn=Network().apply,
    tx=optax.chain(method or optax.identity(), optax.sgd(0.1, momentum=0.9)),
    dynamic_scale=dynamic_scale_lib.DynamicScale(scale=SCALE),
    **variables,
  )
  state = jax_utils.replicate(state)
  step = jax.pmap(
    functools.partial(train_step, method=method), axis_name='batch'
  )
  taken = []
  for image, label in zip(images, labels, strict=True):
    state, is_finite = step(state, {'image': image, 'label': label})
    taken.append(bool(is_finite[0]))
  assert not taken[0]
  assert sum(taken) > 1
  return state


def test_training_equals_sam_by_hand():
  found = train(optax_sam.sam(RHO, axis_name='batch'))
  expected = train(None)
  for name in ('params', 'batch_stats', 'dynamic_scale'):
    left, right = getattr(found, name), getattr(expected, name)
    assert by_hand.distance(left, right) < 1e-6
  of_replica = lambda i: jax.tree.map(lambda leaf: leaf[i], found.params)
  for i in range(1, DEVICES):
    assert by_hand.distance(of_replica(i), of_replica(0)) == 0
