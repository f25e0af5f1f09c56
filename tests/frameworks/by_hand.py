"""SAM's ascent step by hand, for handwritten training steps."""

import jax
import jax.numpy as jnp
import numpy as np


def ascend(params, grads, rho):
  """Returns w + rho * g / norm(g)."""
  squares = [jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(grads)]
  norm = jnp.sqrt(sum(squares))
  return jax.tree.map(lambda w, g: w + rho * g / norm, params, grads)


def distance(left, right):
  """Returns the largest difference of two trees of arrays."""
  pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
  return max(
    np.max(np.abs(np.asarray(x, float) - np.asarray(y, float)))
    for x, y in pairs
  )
