"""Unnormalized SAM."""

import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from tests.methods import checks
from tests.oracles import unnormalized_sam

test_follows_the_rule = checks.follows(unnormalized_sam.CASES)
test_golden_values = checks.golden(
  optax_sam.unnormalized_sam,
  unnormalized_sam.unnormalized_sam,
  ({'rho': 0.05}, (0.34661448, -0.18471927, 0.05528834, 0.82810515)),
)


@pytest.mark.parametrize(
  ('build', 'change'),
  [
    (optax_sam.sam, 1),
    (optax_sam.asam, 1),
    (optax_sam.friendly_sam, 1),
    (optax_sam.unnormalized_sam, 8),
  ],
)
def test_a_factor_of_the_loss_changes_a_perturbation_without_radius(
  build, change
):
  gradient, w = jnp.array([3.0, -4.0]), jnp.ones(2)
  one, other = (
    checks.perturbed(build(0.1), factor * gradient, w) - w for factor in (1, 8)
  )
  np.testing.assert_allclose(other, change * one, rtol=1e-5)
