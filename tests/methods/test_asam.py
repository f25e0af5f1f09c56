"""ASAM."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_sam
from tests.methods import checks
from tests.oracles import asam

test_follows_the_rule = checks.follows(asam.CASES)
test_golden_values = checks.golden(
  optax_sam.asam,
  asam.asam,
  ({}, (0.36364426, -0.18699136, 0.11026726, 0.78697654)),
  (
    {'rho': 2.0, 'eta': 0.0, 'scaled': True},
    (0.14175001, 0.17798759, 0.08725294, 0.73210136),
  ),
)
test_is_base = checks.is_base(optax_sam.asam, {'rho': 0.0})
test_is_sam = checks.is_sam(optax_sam.asam, {'scaled': False})
test_factor_on_the_loss = checks.factor_on_the_loss(
  optax_sam.asam, changes_epsilon=False
)
test_leaf_without_gradient = checks.leaf_without_gradient(
  optax_sam.asam, rho=0.5, eta=0.0
)

WEIGHTS = {'w': np.array([3.0, -4.0]), 'bias': np.array([0.0, 2.0])}
GRADIENT = {'w': np.array([1.0, 1.0]), 'bias': np.array([1.0, -1.0])}


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize(
  ('arguments', 'scales'),
  [
    # The authors, by the name "weight": `w` would be plain SAM to them.
    ({}, {'w': [3.01, 4.01], 'bias': [1.0, 1.0]}),
    # Their example script.
    ({'eta': 0.0}, {'w': [3.0, 4.0], 'bias': [1.0, 1.0]}),
    # davda54/sam, where a bias of zero isn't perturbed.
    ({'eta': 0.0, 'scaled': True}, {'w': [3.0, 4.0], 'bias': [0.0, 2.0]}),
    # dbahri/universal_sam.
    ({'scaled': True}, {'w': [3.01, 4.01], 'bias': [0.01, 2.01]}),
    # What their program makes of a parameter without "weight" in its name.
    ({'scaled': False}, {'w': [1.0, 1.0], 'bias': [1.0, 1.0]}),
  ],
)
def test_published_programs_scale_different_leaves(arguments, scales):
  scales = {name: np.array(scale) for name, scale in scales.items()}
  given = jax.tree.map(jnp.asarray, (GRADIENT, WEIGHTS))
  found = checks.perturbed(optax_sam.asam(0.5, **arguments), *given)
  total = np.sqrt(sum(np.sum((scales[k] * GRADIENT[k]) ** 2) for k in scales))
  for name, scale in scales.items():
    epsilon = 0.5 * scale**2 * GRADIENT[name] / total
    np.testing.assert_allclose(found[name], WEIGHTS[name] + epsilon, rtol=1e-11)
    # The length is that of the radius, relative to the weights.
  relative = [
    np.divide(
      found[k] - WEIGHTS[k], scales[k], where=scales[k] > 0, out=0 * scales[k]
    )
    for k in scales
  ]
  np.testing.assert_allclose(np.linalg.norm(relative), 0.5, rtol=1e-10)
