"""Gradients of all sizes for properties, spread over leaves of all kinds."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

# One structure, so that every function is compiled once.
SHAPES = {'empty': (0,), 'matrix': (2, 3), 'one': (1,), 'scalar': ()}
SIZE = 8
EPS = float(np.finfo(np.float32).eps)
# Squares of these fit into float32, also of the smallest entries.
MAGNITUDES = st.sampled_from([2.0**-45, 2.0**-20, 1.0, 2.0**20, 2.0**45])
ENTRIES = st.one_of(
  st.sampled_from([0.0, 1.0, -1.0]),
  st.floats(-8, 8, width=32).map(lambda x: x if abs(x) > 1e-3 else 0.0),
)
VECTORS = st.builds(
  lambda vector, magnitude: vector * np.float32(magnitude),
  hnp.arrays(np.float32, SIZE, elements=ENTRIES),
  MAGNITUDES,
)
properties = settings(max_examples=60, deadline=None)


def tree_of(vector, dtype=jnp.float32):
  leaves, start = {}, 0
  for name, shape in SHAPES.items():
    size = int(np.prod(shape))
    part = np.reshape(vector[start : start + size], shape)
    leaves[name] = jnp.asarray(part, dtype)
    start += size
  return leaves


def flat(tree):
  leaves = [np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)]
  return np.concatenate(leaves)


def length(vector):
  return np.linalg.norm(np.asarray(vector, np.float64))


def orthogonal_part(x, to):
  """Returns x without its part along another vector, and 0 as rounding."""
  x, to = np.asarray(x, np.float64), np.asarray(to, np.float64)
  if not to.any():
    return x
  part = x - (x @ to) / (to @ to) * to
  return part if length(part) > 8 * EPS * length(x) else np.zeros_like(x)


def assert_near(found, expected, *scales):
  """Equal up to the rounding of vectors of these lengths."""
  assert np.isfinite(found).all()
  tolerance = 64 * EPS * max(length(scale) for scale in scales)
  np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
