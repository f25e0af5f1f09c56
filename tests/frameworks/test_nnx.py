"""Flax NNX on digits: random numbers and metrics are arguments of the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn import datasets

import optax_sam
from optax_sam.flax import nnx_value_fn
from tests.frameworks import by_hand

STRICT = False  # their libraries need promotion
RHO = 0.1


def test_asam_scales_no_bias_of_a_split_model():
  _, split = nnx.split(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
  found = []
  for params in (split, nnx.as_pure(split)):
    tx, grads = optax_sam.asam(0.5), jax.tree.map(jnp.ones_like, params)
    updates, _ = tx.update(
      grads, tx.init(params), params, grad_fn=lambda params: params
    )
    found.append(jax.tree.leaves(updates))
  for one, other in zip(*found, strict=True):
    np.testing.assert_array_equal(one, other)


class Network(nnx.Module):
  def __init__(self, rngs):
    self.conv = nnx.Conv(1, 4, (3, 3), strides=2, rngs=rngs)
    self.norm = nnx.BatchNorm(4, rngs=rngs)
    self.dropout = nnx.Dropout(0.3)
    self.out = nnx.Linear(64, 10, rngs=rngs)

  def __call__(self, x, rngs):
    x = nnx.relu(self.norm(self.conv(x)))
    x = self.dropout(x.reshape(len(x), -1), rngs=rngs)
    return self.out(x)


def loss_fn(model, rngs, metrics, batch):
  logits = model(batch['image'], rngs)
  losses = optax.softmax_cross_entropy_with_integer_labels(
    logits, batch['label']
  )
  metrics.update(loss=losses, logits=logits, labels=batch['label'])
  return jnp.mean(losses), logits


def train_step(model, optimizer, metrics, rngs, batch):
  value_fn = nnx_value_fn(model, loss_fn, rngs, metrics, batch=batch)
  grad_fn = nnx.value_and_grad(loss_fn, has_aux=True)
  _, grads = grad_fn(model, rngs, metrics, batch)
  optimizer.update(model, grads, value_fn=value_fn)


def step_by_hand(model, optimizer, metrics, rngs, batch):
  second, same_rngs, unused = nnx.clone((model, rngs, metrics))
  grad_fn = nnx.grad(loss_fn, has_aux=True)
  grads, _ = grad_fn(model, rngs, metrics, batch)
  params = nnx.as_pure(nnx.state(second, nnx.Param))
  nnx.update(second, by_hand.ascend(params, nnx.as_pure(grads), RHO))
  grads, _ = grad_fn(second, same_rngs, unused, batch)
  optimizer.update(model, grads)


def train(step, method):
  model, rngs = Network(nnx.Rngs(0)), nnx.Rngs(dropout=1)
  tx = optax.chain(method, optax.sgd(0.1, momentum=0.9))
  optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
  metrics = nnx.MultiMetric(
    accuracy=nnx.metrics.Accuracy(), loss=nnx.metrics.Average('loss')
  )
  digits = datasets.load_digits()
  step = nnx.jit(step)
  for i in range(6):
    rows = slice(32 * i, 32 * i + 32)
    image = jnp.asarray(digits.images[rows, ..., None] / 16, jnp.float32)
    batch = {'image': image, 'label': jnp.asarray(digits.target[rows])}
    step(model, optimizer, metrics, rngs, batch)
  assert int(metrics.loss.count[...]) == 6 * 32
  assert int(rngs.dropout.count[...]) == 6
  return nnx.as_pure(nnx.state((model, rngs, metrics), nnx.Not(nnx.RngKey)))


def test_training_equals_sam_by_hand():
  found = train(train_step, optax_sam.sam(RHO))
  expected = train(step_by_hand, optax.identity())
  assert by_hand.distance(found, expected) < 1e-6
