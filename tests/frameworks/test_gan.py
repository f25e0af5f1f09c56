"""A GAN of plain functions: two networks, optimizers and perturbations."""

import jax
import jax.numpy as jnp
import optax

import optax_sam
from tests.frameworks import by_hand

RADII = {'generator': 0.05, 'critic': 0.1}


def network(params, x):
  return jnp.tanh(x @ params['hidden']) @ params['out']


def make_network(key, inputs, outputs):
  first, second = jax.random.split(key)
  return {
    'hidden': jax.random.normal(first, (inputs, 16)),
    'out': jax.random.normal(second, (16, outputs)) / 4,
  }


def critic_loss(critic, generator, real, noise):
  on_real, on_fake = (
    network(critic, x) for x in (real, network(generator, noise))
  )
  return jnp.mean(jax.nn.softplus(-on_real) + jax.nn.softplus(on_fake))


def generator_loss(generator, critic, noise):
  fake = network(generator, noise)
  return jnp.mean(jax.nn.softplus(-network(critic, fake)))


def train(methods):
  keys = jax.random.split(jax.random.key(0), 4)
  players = {
    'generator': make_network(keys[0], 4, 2),
    'critic': make_network(keys[1], 2, 1),
  }
  base = optax.sgd(0.05, momentum=0.5)
  txs = {
    name: optax.chain(methods[name], base) if methods else base
    for name in players
  }
  opt_states = {name: txs[name].init(players[name]) for name in players}

  def play(name, loss_fn, players, opt_states):
    params = players[name]
    grads = jax.grad(loss_fn)(params)
    if not methods:
      moved = by_hand.ascend(params, grads, RADII[name])
      grads = jax.grad(loss_fn)(moved)
      updates, state = txs[name].update(grads, opt_states[name], params)
    else:
      updates, state = txs[name].update(
        grads, opt_states[name], params, value_fn=loss_fn
      )
    params = optax.apply_updates(params, updates)
    return {**players, name: params}, {**opt_states, name: state}

  @jax.jit
  def step(players, opt_states, real, noise):
    of_critic = lambda p: critic_loss(p, players['generator'], real, noise)
    new_players, opt_states = play('critic', of_critic, players, opt_states)
    of_generator = lambda p: generator_loss(p, new_players['critic'], noise)
    return play('generator', of_generator, new_players, opt_states)

  for real, noise in zip(
    1 + jax.random.normal(keys[2], (8, 16, 2)),
    jax.random.normal(keys[3], (8, 16, 4)),
    strict=True,
  ):
    players, opt_states = step(players, opt_states, real, noise)
  return players


def test_training_equals_sam_by_hand():
  methods = {name: optax_sam.sam(rho) for name, rho in RADII.items()}
  assert by_hand.distance(train(methods), train(None)) < 1e-6
