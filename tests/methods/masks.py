"""Checks of both variants of sparse SAM."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_sam.trees import sparse_masks
from tests.conformance.reference import Recording
from tests.methods import checks


def mask_of(state):
  return optax.tree_utils.tree_get(state, 'mask')


def top_of(scores, k):
  bits = sparse_masks.rank_bits(jnp.asarray(scores, jnp.float32))
  return np.asarray(sparse_masks.largest([bits], int(k))[0])


def assert_recorded_perturbations(name, method):
  """Raises unless the masked epsilon has the norm of the full gradient.

  The published program has a stabilizer of 1e-7, ours of 1e-12, so they are
  equal to 1e-6.
  """
  recording = Recording(name)

  @jax.jit
  def epsilon(params, gradient, mask):
    # Between two refreshes, where the recorded mask is unchanged.
    state = checks.with_fields(
      method.init(params), mask=mask, step_count=jnp.int32(1)
    )
    point, _ = method.update(
      gradient,
      state,
      params,
      grad_fn=lambda p: p,
      per_example_value_fn=recording.losses,
      batch=recording.batch(0),
    )
    return jax.tree.map(jnp.subtract, point, params)

  for t in range(recording.steps):
    found = epsilon(
      recording.tree(recording['w'][t]),
      recording.tree(recording['g'][t]),
      recording.tree(recording['mask'][t].astype(bool)),
    )
    np.testing.assert_allclose(
      recording.flat(found), recording['eps'][t], rtol=0, atol=1e-6
    )
