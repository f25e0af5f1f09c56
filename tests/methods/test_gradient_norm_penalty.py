"""Gradient-norm penalty."""

import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from tests.methods import checks
from tests.oracles import gradient_norm_penalty

GNP = optax_sam.gradient_norm_penalty

test_follows_the_rule = checks.follows(gradient_norm_penalty.CASES)
test_golden_values = checks.golden(
  GNP,
  gradient_norm_penalty.gradient_norm_penalty,
  ({}, (0.39136535, -0.25318363, 0.00195438, 0.88787700)),
  (
    {'normalize_clean': True},
    (0.43217737, -0.32116042, -0.04356668, 1.00683518),
  ),
)
test_is_base = checks.is_base(GNP, {'rho': 0.0}, {'alpha': 0.0})
test_is_sam = checks.is_sam(GNP, {'alpha': 1.0})


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize(
  ('normalize_clean', 'expected'),
  # The README of the program; its released configuration.
  [(False, [0.2 * 3, 0.2 * 4 + 0.8 * 2]), (True, [0.2 * 0.6, 0.16 + 1.6])],
)
def test_clean_gradient(normalize_clean, expected):
  found = checks.perturbed(
    GNP(normalize_clean=normalize_clean),
    jnp.array([3.0, 4.0]),
    jnp.zeros(2),
    grad_fn=lambda _: jnp.array([0.0, 2.0]),
  )
  np.testing.assert_allclose(found, expected, rtol=1e-10)
