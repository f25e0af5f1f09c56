"""Weighted examples: ImbSAM and Focal-SAM."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from optax_sam import descents, perturbations, selections
from tests.methods import checks
from tests.oracles import step
from tests.oracles.problems import NETWORK

COUNT = len(next(iter(NETWORK.batch(0).values())))
RARE = np.arange(COUNT) % 3 == 0
WEIGHTS = {
  'ImbSAM': RARE * 1.0,
  'Focal-SAM': 0.8 * np.where(RARE, 0.9, 0.1) ** 3.2,
}


def method(weights, **given):
  return optax_sam.sharpness_aware(
    perturbations.scale_to_radius(0.1),
    selection=selections.weighted(lambda _: jnp.asarray(weights)),
    descent=descents.add_change(),
    **given,
  )


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('name', WEIGHTS)
def test_follows_the_rule(name):
  """Gradients of single examples, summed with the weights, over B."""
  weights = WEIGHTS[name]

  def of_examples(one, points):
    rows = [one.gradients(points, [np.array([i])]) for i in range(COUNT)]
    return np.concatenate(rows)

  def rule(one):
    at_w = of_examples(one, 0.0)
    sharp = weights @ at_w / COUNT
    epsilon = step.of_length(0.1, sharp[None])
    there = weights @ of_examples(one, epsilon) / COUNT
    return (there + (1 - weights) @ at_w / COUNT)[None]

  ours = checks.run(optax.chain(method(weights), NETWORK.base()))
  np.testing.assert_allclose(
    ours.path, step.train(rule, NETWORK).path, rtol=0, atol=1e-12
  )


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('weight', [0.0, 1.0])
def test_equal_weights_give_sam_or_the_base_optimizer(weight):
  ours = checks.run(optax.chain(method(np.full(COUNT, weight)), NETWORK.base()))
  other = optax_sam.sam(0.1 * weight)
  expected = checks.run(optax.chain(other, NETWORK.base()))
  np.testing.assert_allclose(ours.path, expected.path, rtol=0, atol=1e-12)


def test_three_gradients_are_computed():
  batch = {'x': jnp.ones((8, 32)), 'y': jnp.ones((8, 32))}
  params = jnp.ones((32, 32))
  losses = lambda w, b: jnp.sum((jnp.tanh(b['x'] @ w) - b['y']) ** 2, axis=1)
  given = {'per_example_value_fn': losses, 'batch': batch}
  value_fn = lambda w: losses(w, batch).mean()

  def flops(tx):
    def one(w):
      state = tx.init(w)
      return tx.update(jax.grad(value_fn)(w), state, w, **given)[0]

    return jax.jit(one).lower(params).compile().cost_analysis()['flops']

  # SAM has two; the two of weighted losses at w share a forward pass.
  ratio = flops(method(np.linspace(0.1, 0.9, 8))) / flops(optax_sam.sam(0.1))
  assert 1.2 < ratio < 1.6


def test_wrong_weights_are_refused():
  tx, w = method(np.ones(3)), jnp.ones(2)
  losses = lambda w, b: b * jnp.sum(w)
  with pytest.raises(ValueError, match=r'one weight per example, shape \(4,\)'):
    tx.update(w, tx.init(w), w, per_example_value_fn=losses, batch=jnp.ones(4))
