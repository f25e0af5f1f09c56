"""A network of two layers with adapters, in JAX and in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

X = np.random.default_rng(0).normal(size=(8, 6, 5))
Y = np.random.default_rng(1).normal(size=(8, 6, 3))
BATCHES = [{'x': x, 'y': y} for x, y in zip(X, Y, strict=True)]
SHAPES = ((5, 4), (4, 3))
SCALE = 0.5


def kernels():
  rng = np.random.default_rng(2)
  return [rng.normal(size=shape) for shape in SHAPES]


def adapters(seed, zeros=False):
  rng, found = np.random.default_rng(seed), []
  for inputs, outputs in SHAPES:
    b = rng.normal(size=(2, outputs)) / 3
    found.append(
      {'a': rng.normal(size=(inputs, 2)), 'b': 0 * b if zeros else b}
    )
  return found


def loss(merged, batch):
  hidden = jnp.tanh(batch['x'] @ merged[0])
  return jnp.mean(jnp.square(hidden @ merged[1] - batch['y']))


def gradients(merged, batch):
  """The gradients of the merged kernels, in NumPy."""
  x, y = batch['x'], batch['y']
  hidden = np.tanh(x @ merged[0])
  error = 2 * (hidden @ merged[1] - y) / y.size
  below = error @ merged[1].T * (1 - hidden**2)
  return x.T @ below, hidden.T @ error


def factor_gradients(adapters, of_merged, scale):
  """The gradients of the factors, from those of the merged kernels."""
  return [
    {'a': scale * g @ layer['b'].T, 'b': scale * layer['a'].T @ g}
    for layer, g in zip(adapters, of_merged, strict=True)
  ]


def products(adapters, scale=1.0):
  return [scale * layer['a'] @ layer['b'] for layer in adapters]


def assert_close(found, expected):
  for x, y in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(x, y, rtol=0, atol=1e-12)
