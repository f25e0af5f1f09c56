"""LE-SAM."""

import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from tests.methods import checks
from tests.oracles import le_sam

test_follows_the_rule = checks.follows(le_sam.CASES)
test_golden_values = checks.golden(
  optax_sam.le_sam,
  le_sam.le_sam,
  ({}, (0.39488609, -0.25571142, 0.00205580, 0.88555024)),
)
test_is_sam = checks.is_sam(
  optax_sam.le_sam, {'sigma': np.inf, 'rho_max': checks.RHO}
)


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize('size', [0.1, 5.0])
def test_the_linearized_loss_rises_by_sigma(size):
  """If the radius reaches `rho_max`, the rise is smaller."""
  gradient = size * jnp.array([0.6, 0.8])
  epsilon = checks.perturbed(optax_sam.le_sam(0.3), gradient, jnp.zeros(2))
  np.testing.assert_allclose(epsilon @ gradient, min(0.3, 0.5 * size))
