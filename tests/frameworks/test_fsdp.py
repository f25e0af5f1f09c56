"""Parameters sharded over eight devices by `jit` equal those of one device."""

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import optax_sam
from tests.frameworks import by_hand

STRICT = False  # Adam promotes its count
RHO = 0.1


def loss_fn(params, batch):
  hidden = jnp.tanh(batch['x'] @ params['hidden'] + params['bias'][None])
  return jnp.mean(((hidden @ params['out'])[:, 0] - batch['y']) ** 2)


def step_by_hand(tx, params, opt_state, batch):
  grads = jax.grad(loss_fn)(params, batch)
  moved = by_hand.ascend(params, grads, RHO)
  return tx.update(jax.grad(loss_fn)(moved, batch), opt_state, params)


def step(tx, params, opt_state, batch):
  grads = jax.grad(loss_fn)(params, batch)
  value_fn = lambda params: loss_fn(params, batch)
  return tx.update(grads, opt_state, params, value_fn=value_fn)


def train(method, devices):
  mesh = jax.make_mesh(
    (devices,),
    ('data',),
    axis_types=(jax.sharding.AxisType.Auto,),
    devices=jax.devices()[:devices],
  )
  split = NamedSharding(mesh, P('data'))
  keys = jax.random.split(jax.random.key(0), 3)
  params = {
    'hidden': jax.random.normal(keys[0], (8, 16)) / 3,
    'bias': jnp.zeros(16),
    'out': jax.random.normal(keys[1], (16, 1)) / 4,
  }
  tx = optax.chain(method or optax.identity(), optax.adam(0.01))
  params = jax.device_put(params, split)
  opt_state = jax.jit(tx.init)(params)

  @jax.jit
  def train_step(params, opt_state, batch):
    taken = step_by_hand if method is None else step
    updates, opt_state = taken(tx, params, opt_state, batch)
    params = optax.apply_updates(params, updates)
    return jax.lax.with_sharding_constraint(params, split), opt_state

  for x in jax.random.normal(keys[2], (5, 16, 8)):
    batch = jax.device_put({'x': x, 'y': jnp.sin(x[:, 0])}, split)
    params, opt_state = train_step(params, opt_state, batch)
  moments = opt_state[1][0].mu
  for leaf in jax.tree.leaves((params, moments)):
    assert len(leaf.sharding.device_set) == devices
    assert leaf.addressable_shards[0].data.size == leaf.size // devices
  return params, moments


@pytest.mark.parametrize('devices', [1, 8])
def test_training_equals_sam_by_hand(devices):
  found = train(optax_sam.sam(RHO), devices)
  assert by_hand.distance(found, train(None, 1)) < 1e-6
