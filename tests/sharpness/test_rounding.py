"""Rounding to few bits against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optax_sam import sharpness
from tests.sharpness import problems


def rounded(w, bits, per):
  """Returns the nearest of the 2^bits - 1 points of every grid, by search."""
  found, most = np.array(w), 2 ** (bits - 1) - 1
  if w.ndim < 2:
    return found
  columns = w.reshape(-1, w.shape[-1])
  for column in range(columns.shape[1]):
    part = columns[:, column]
    largest = np.abs(part if per == 'unit' else columns).max()
    grid = np.arange(-most, most + 1) * largest / most
    near = np.abs(part[:, None] - grid[None, :]).argmin(axis=1)
    found.reshape(columns.shape)[:, column] = grid[near]
  return found


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('per', ['unit', 'leaf'])
@pytest.mark.parametrize('bits', [2, 4, 7])
def test_weights_move_to_the_nearest_point_of_the_grid(bits, per):
  rng = np.random.default_rng(bits)
  shapes = {'kernel': (3, 3, 5, 4), 'dense': (6, 3), 'bias': (4,), 'scale': ()}
  tree = {name: rng.normal(size=shape) for name, shape in shapes.items()}
  tree['dense'][:, 1] = 0  # a unit of zeros
  found = jax.jit(lambda w: sharpness.round_weights(w, bits, per=per))(tree)
  for name, w in tree.items():
    assert found[name].dtype == jnp.float64
    np.testing.assert_allclose(found[name], rounded(w, bits, per), atol=1e-14)
  assert np.array_equal(found['bias'], tree['bias'])
  assert np.unique(np.asarray(found['kernel'])[..., 0]).size <= 2**bits - 1


def test_the_rise_is_that_of_the_rounded_network():
  params, batch = problems.network()
  x, y = np.asarray(batch['inputs']), np.asarray(batch['labels'])
  loss = lambda w: np.mean((np.tanh(x @ w['first']) @ w['second'] - y) ** 2)
  rises = {}
  for bits in (2, 3, 8):
    near = {
      name: rounded(np.asarray(w, np.float64), bits, 'leaf')
      for name, w in params.items()
    }
    found = sharpness.rounding_rise(
      problems.network_loss, params, bits, per='leaf', args=(batch,)
    )
    expected = loss(near) - loss(params)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    rises[bits] = abs(found)
  assert rises[8] < rises[3] / 10


def test_weights_on_the_grid_and_half_precision_are_returned_as_they_are():
  w = jnp.arange(-7.0, 8.0).reshape(15, 1)
  assert jnp.array_equal(sharpness.round_weights(w, 4), w)
  half = sharpness.round_weights(w.astype('bfloat16') + 0.25, 4)
  assert half.dtype == jnp.bfloat16
  assert sharpness.rounding_rise(lambda w: jnp.sum(w**2), w, 4) == 0
