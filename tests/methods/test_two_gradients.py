"""The component of a gradient orthogonal to another, at any magnitude."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests.methods import checks

GSAM, LOOK_SAM = optax_sam.gsam(alpha=0.375), optax_sam.look_sam(period=2)
CLEAN, OTHER = (
  np.sin(np.arange(1, 9, dtype=np.float32) + start) for start in (0, 2)
)
SIZES = (2.0**-45, 2.0**-20, 1.0, 2.0**45)


def first_step(method, clean, perturbed):
  """Returns update and state of a method for two given gradients."""
  clean, perturbed = jnp.asarray(clean), jnp.asarray(perturbed)
  w = jnp.zeros_like(clean)
  return method.update(clean, method.init(w), w, grad_fn=lambda _: perturbed)


def direction(state):
  return optax.tree_utils.tree_get(state, 'direction')


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('other', SIZES)
def test_single_precision_suffices_at_any_size(size, other):
  g, gp = np.float32(size) * CLEAN, np.float32(other) * OTHER
  u, _ = first_step(GSAM, g, gp)
  wide, unit = g.astype(float), OTHER / np.linalg.norm(OTHER.astype(float))
  expected = gp - 0.375 * (wide - (wide @ unit) * unit)
  np.testing.assert_allclose(u, expected, rtol=0, atol=1e-5 * max(size, other))
  _, state = first_step(LOOK_SAM, gp, g)
  part = wide - (wide @ unit) * unit
  part /= np.linalg.norm(part)
  np.testing.assert_allclose(direction(state), part, rtol=0, atol=1e-5)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('slope', [-3.7, 0.0, 0.1, 1 / 3, 1.0])
def test_parallel_gradients_have_no_orthogonal_component(slope, size):
  """Normalized rounding errors would be a meaningless direction."""
  g = np.float32(size) * CLEAN
  gp = np.float32(slope) * g
  _, state = first_step(LOOK_SAM, g, gp)
  np.testing.assert_array_equal(direction(state), np.zeros(8))
  u, _ = first_step(GSAM, g, gp)
  np.testing.assert_array_equal(u, gp)


def test_parts_of_gradients_whose_squares_overflow():
  long, short = jnp.full(2, 1e30), jnp.array([1e10, 0.0])
  u, _ = first_step(GSAM, long, short)
  np.testing.assert_array_equal(u, short)  # negligible against the other
  state = checks.with_fields(
    LOOK_SAM.init(long),
    direction=jnp.array([1.0, 0.0]),
    step_count=jnp.int32(1),
  )
  u, _ = LOOK_SAM.update(long, state, long, grad_fn=lambda _: short)
  expected = 1e30 * np.array([1 + 0.1 * 2**0.5, 1])
  np.testing.assert_allclose(u, expected, rtol=1e-6)
