"""Functional-SAM."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam

X = np.random.default_rng(0).normal(size=(8, 5))
Y = np.random.default_rng(1).integers(0, 3, size=8)


def outputs(w, batch):
  return jnp.tanh(batch['x'] @ w['a']) @ w['b']


def cross_entropy(logits, batch):
  return optax.softmax_cross_entropy_with_integer_labels(
    logits, batch['y']
  ).mean()


def transcription(w, rho):
  """One direction in NumPy, with the Jacobian written out."""

  def forward(a, b):
    h = np.tanh(X @ a)
    return h, h @ b

  def pull_back(a, b, c):
    h, _ = forward(a, b)
    return X.T @ (c @ b.T * (1 - h**2)), h.T @ c

  logits = forward(*w)[1]
  e = np.exp(logits - logits.max(axis=1, keepdims=True))
  c = (e / e.sum(axis=1, keepdims=True) - np.eye(3)[Y]) / len(Y)
  g = pull_back(*w, c)
  size = np.sqrt(sum(np.sum(x**2) for x in g))
  return pull_back(*(x + rho * y / size for x, y in zip(w, g, strict=True)), c)


@pytest.mark.usefixtures('float64')
def test_training_follows_the_rule():
  rng, batch = np.random.default_rng(2), {'x': jnp.asarray(X), 'y': Y}
  w = {'a': rng.normal(size=(5, 4)), 'b': rng.normal(size=(4, 3))}
  expected = (w['a'], w['b'])
  tx = optax.chain(optax_sam.sam(0.3), optax.sgd(0.5))

  @jax.jit
  def train(params, state):
    loss = lambda p: cross_entropy(outputs(p, batch), batch)
    updates, state = tx.update(
      jax.grad(loss)(params),
      state,
      params,
      grad_fn=optax_sam.functional_grad_fn(
        outputs, cross_entropy, params, batch
      ),
    )
    return optax.apply_updates(params, updates), state

  params = jax.tree.map(jnp.asarray, w)
  state = tx.init(params)
  for _ in range(8):
    params, state = train(params, state)
    direction = transcription(expected, 0.3)
    expected = tuple(
      x - 0.5 * u for x, u in zip(expected, direction, strict=True)
    )
  for name, x in zip('ab', expected, strict=True):
    np.testing.assert_allclose(params[name], x, rtol=0, atol=1e-12)


@pytest.mark.usefixtures('float64')
def test_a_loss_that_is_linear_in_the_outputs_gives_sam():
  w = {'a': jnp.ones((5, 4)) / 3, 'b': jnp.ones((4, 3))}
  batch, tx = {'x': jnp.asarray(X)}, optax_sam.sam(0.3)
  loss_fn = lambda z, _: jnp.sum(z @ jnp.arange(3.0))
  value_fn = lambda w: loss_fn(outputs(w, batch), batch)
  g, state = jax.grad(value_fn)(w), tx.init(w)
  grad_fn = optax_sam.functional_grad_fn(outputs, loss_fn, w, batch)
  found, _ = tx.update(g, state, w, grad_fn=grad_fn)
  expected, _ = tx.update(g, state, w, value_fn=value_fn)
  for name in w:
    np.testing.assert_allclose(found[name], expected[name], rtol=1e-12)
