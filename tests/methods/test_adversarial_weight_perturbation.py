"""Adversarial weight perturbation."""

import jax.numpy as jnp
import numpy as np

import optax_sam
from tests.methods import checks
from tests.oracles import adversarial_weight_perturbation as rule

BUILD = optax_sam.adversarial_weight_perturbation
test_follows_the_rule = checks.follows(rule.CASES)
test_is_the_base_optimizer = checks.is_base(BUILD, {'gamma': 0.0})


def test_zeros_are_not_perturbed_and_a_factor_of_the_loss_has_no_effect():
  w = {'a': jnp.zeros((2, 2)), 'b': jnp.ones((2, 2)), 'c': jnp.ones((2, 2))}
  g = {'a': jnp.ones((2, 2)), 'b': jnp.zeros((2, 2)), 'c': -jnp.ones((2, 2))}
  found = checks.perturbed(BUILD(0.5), g, w)
  other = checks.perturbed(BUILD(0.5), {k: 4 * x for k, x in g.items()}, w)
  for name, expected in (('a', 0.0), ('b', 1.0), ('c', 0.5)):
    np.testing.assert_allclose(found[name], expected, rtol=1e-6)
    np.testing.assert_array_equal(other[name], found[name])
