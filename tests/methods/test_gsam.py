"""GSAM, and the radius that depends on the learning rate."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_sam
from tests.methods import checks
from tests.oracles import gsam

test_follows_the_rule = checks.follows(gsam.CASES)
test_golden_values = checks.golden(
  optax_sam.gsam,
  gsam.gsam,
  ({}, (0.39836672, -0.26483286, -0.00635992, 0.90579709)),
)
test_is_sam = checks.is_sam(optax_sam.gsam, {'alpha': 0.0})
test_is_the_base_optimizer_of_the_clean_loss = checks.is_base(
  optax_sam.gsam, {'alpha': 0.0, 'minimize_fp': False}
)
test_leaf_without_gradient = checks.leaf_without_gradient(optax_sam.gsam)


@pytest.mark.usefixtures('float64')
def test_a_zero_gradient_gives_the_base_step():
  """A public port divides 0 by 0 here."""
  checks.assert_zero_gradient_is_base('P3z_gsam_samhub', optax_sam.gsam())


@pytest.mark.parametrize(
  ('rate', 'lr_min', 'expected'),
  [
    # In other implementations a warm-up below lr_min gives a negative radius.
    (optax.linear_schedule(0.0, 1.0, 10), 0.5, [0.1, 0.1, 0.6]),
    (optax.linear_schedule(0.0, 1.0, 10), 0.0, [0.1, 0.35, 0.6]),
    (lambda _: 1, 0.5, [0.6, 0.6, 0.6]),
  ],
)
def test_radius_stays_between_its_bounds(rate, lr_min, expected):
  radius = optax_sam.rho_like_learning_rate(
    rate, rho_max=0.6, rho_min=0.1, lr_max=1.0, lr_min=lr_min
  )
  found = [radius(jnp.int32(t)) for t in (0, 5, 10)]
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_radius_of_an_empty_range_is_constant():
  radius = optax_sam.rho_like_learning_rate(
    lambda _: 1, rho_max=0.75, rho_min=0.25, lr_max=1, lr_min=1
  )
  assert float(radius(0)) == 0.75
