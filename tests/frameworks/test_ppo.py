"""PPO as in training on accelerators: a scan of updates, vmapped over seeds.

The environment rewards the action with the largest score of a fixed matrix.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import optax_sam
from optax_sam.flax import TrainState
from tests.frameworks import by_hand

STRICT = False  # advantages and losses promote ranks
RHO, SEEDS, UPDATES, STEPS, ENVS = 0.05, 3, 3, 8, 4
MINIBATCHES, OBSERVATION, ACTIONS = 2, 5, 3


class ActorCritic(nn.Module):
  @nn.compact
  def __call__(self, x):
    hidden = nn.tanh(nn.Dense(16)(x))
    return nn.Dense(ACTIONS)(hidden), nn.Dense(1)(hidden)[..., 0]


def loss_fn(params, minibatch):
  logits, value = ActorCritic().apply(params, minibatch['observation'])
  log_probs = jax.nn.log_softmax(logits)
  taken = jnp.take_along_axis(log_probs, minibatch['action'][:, None], 1)[:, 0]
  ratio = jnp.exp(taken - minibatch['log_prob'])
  # Normalized over the minibatch, so the loss couples examples.
  gain = minibatch['advantage']
  gain = (gain - jnp.mean(gain)) / (jnp.std(gain) + 1e-8)
  clipped = jnp.clip(ratio, 0.8, 1.2) * gain
  actor = -jnp.mean(jnp.minimum(ratio * gain, clipped))
  critic = jnp.mean((value - minibatch['target']) ** 2)
  entropy = -jnp.mean(jnp.sum(jnp.exp(log_probs) * log_probs, axis=1))
  return actor + 0.5 * critic - 0.01 * entropy


def train(key, method):
  key, first, second = jax.random.split(key, 3)
  right = jax.random.normal(first, (OBSERVATION, ACTIONS))
  state = TrainState.create(
    apply_fn=None,
    params=ActorCritic().init(second, jnp.zeros(OBSERVATION)),
    tx=optax.chain(
      method or optax.identity(),
      optax.clip_by_global_norm(0.5),
      optax.sgd(0.1, momentum=0.9),
    ),
  )

  def on_minibatch(state, minibatch):
    loss, grads = jax.value_and_grad(loss_fn)(state.params, minibatch)
    if method is None:
      moved = by_hand.ascend(state.params, grads, RHO)
      grads = jax.grad(loss_fn)(moved, minibatch)
      return state.apply_gradients(grads=grads), loss
    value_fn = lambda params: loss_fn(params, minibatch)
    return state.apply_gradients(grads=grads, value_fn=value_fn), loss

  def environment_step(state, key):
    keys = jax.random.split(key)
    observation = jax.random.normal(keys[0], (ENVS, OBSERVATION))
    logits, value = ActorCritic().apply(state.params, observation)
    action = jax.random.categorical(keys[1], logits)
    reward = 1.0 * (action == jnp.argmax(observation @ right, axis=1))
    log_prob = jax.nn.log_softmax(logits)[jnp.arange(ENVS), action]
    return state, {
      'observation': observation,
      'action': action,
      'log_prob': log_prob,
      'advantage': reward - value,
      'target': reward,
    }

  def update(state, key):
    rollout, order = jax.random.split(key)
    keys = jax.random.split(rollout, STEPS)
    _, batch = jax.lax.scan(environment_step, state, keys)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)
    order = jax.random.permutation(order, STEPS * ENVS)
    minibatches = jax.tree.map(
      lambda x: x[order].reshape(MINIBATCHES, -1, *x.shape[1:]), flat
    )
    return jax.lax.scan(on_minibatch, state, minibatches)

  state, losses = jax.lax.scan(update, state, jax.random.split(key, UPDATES))
  return state.params, losses


def test_training_equals_sam_by_hand():
  keys = jax.random.split(jax.random.key(0), SEEDS)
  found, expected, plain = (
    jax.jit(jax.vmap(lambda key, method=method: train(key, method)))(keys)
    for method in (optax_sam.sam(RHO), None, optax_sam.sam(0.0))
  )
  assert by_hand.distance(found, expected) < 1e-6
  assert by_hand.distance(found, plain) > 1e-3
