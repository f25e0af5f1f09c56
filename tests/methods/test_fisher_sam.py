"""Fisher SAM."""

import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from tests.methods import checks
from tests.oracles import fisher_sam

test_follows_the_rule = checks.follows(fisher_sam.CASES)
test_golden_values = checks.golden(
  optax_sam.fisher_sam,
  fisher_sam.fisher_sam,
  ({}, (0.39536345, -0.26420145, -0.00591917, 0.89765478)),
)
test_is_sam = checks.is_sam(optax_sam.fisher_sam, {'eta': 0.0})


@pytest.mark.usefixtures('float64')
def test_length_is_rho_in_the_metric():
  """Another port rescales the perturbation to Euclidean length rho."""
  gradient = jnp.array([1.0, 3.0])
  epsilon = checks.perturbed(optax_sam.fisher_sam(0.1), gradient, jnp.zeros(2))
  metric = 1 + np.square(gradient)
  np.testing.assert_allclose(np.sum(metric * epsilon**2), 0.01, rtol=1e-10)
  assert np.linalg.norm(epsilon) < 0.06


def test_a_gradient_whose_squares_underflow_is_perturbed_as_by_sam():
  """Then the metric is 1."""
  gradient = jnp.array([3e-25, 4e-25], jnp.float32)
  epsilon = checks.perturbed(optax_sam.fisher_sam(1.0), gradient, jnp.zeros(2))
  np.testing.assert_allclose(epsilon, [0.6, 0.8], rtol=1e-5)
