"""Statistics in bfloat16 are rounded where they are stored, nowhere else."""

import jax.numpy as jnp
import numpy as np
import optax

from optax_sam import descents, perturbations

CLEAN = {'w': jnp.linspace(0.5, 2.0, 16)}
PERTURBED = {'w': jnp.linspace(1.0, -2.0, 16)}


def rounded(x):
  return jnp.asarray(x, jnp.bfloat16)


def test_the_average():
  wide, half = (
    piece.update(CLEAN, piece.init(CLEAN))
    for piece in (
      perturbations.subtract_ema(0.9, 0.5, accumulator_dtype=dtype)
      for dtype in (None, 'bfloat16')
    )
  )
  np.testing.assert_array_equal(half[0]['w'], wide[0]['w'])
  np.testing.assert_array_equal(half[1].ema['w'], rounded(wide[1].ema['w']))


def test_the_part_that_is_reused():
  both = [
    descents.reuse_orthogonal(0.5, accumulator_dtype=dtype)
    for dtype in (None, jnp.bfloat16)
  ]
  (_, wide), (_, half) = (
    descent.on_ascent(CLEAN, lambda _: PERTURBED, descent.init(CLEAN))
    for descent in both
  )
  np.testing.assert_array_equal(
    half.direction['w'], rounded(wide.direction['w'])
  )
  assert half.ratio == wide.ratio
  # What is added is not rounded once more.
  direction, _ = both[1].on_skip(CLEAN, half)
  added = np.asarray(direction['w'] - CLEAN['w'])
  stored = np.asarray(half.direction['w'], np.float32)
  np.testing.assert_allclose(
    added, 0.5 * np.linalg.norm(CLEAN['w']) * stored, rtol=1e-4, atol=1e-6
  )


def test_a_small_perturbation_of_bfloat16_parameters_is_lost():
  """Which is why the pages advise float32 parameters."""
  weights = jnp.ones(1000, jnp.bfloat16)
  element = perturbations.scale_to_radius(0.05)
  epsilon, _ = element.update(weights, element.init(weights), weights)
  assert float(optax.tree.norm(epsilon)) > 0.04
  assert bool(jnp.all(weights + epsilon == weights))
