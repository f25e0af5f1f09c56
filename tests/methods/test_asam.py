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
test_is_sam = checks.is_sam(optax_sam.asam, {'scaled': False})
test_leaf_without_gradient = checks.leaf_without_gradient(
  optax_sam.asam, rho=0.5, eta=0.0
)

WEIGHTS = {'w': np.array([3.0, -4.0]), 'bias': np.array([0.0, 2.0])}
GRADIENT = {'w': np.array([1.0, 1.0]), 'bias': np.array([1.0, -1.0])}


@pytest.mark.usefixtures('float64')
@pytest.mark.parametrize(
  ('arguments', 'scales'),
  [
    # The authors scale parameters with "weight" in their names; with the name
    # `w` their program is SAM.
    ({}, {'w': [3.01, 4.01], 'bias': [1.0, 1.0]}),
    # Their example script.
    ({'eta': 0.0}, {'w': [3.0, 4.0], 'bias': [1.0, 1.0]}),
    # davda54/sam does not perturb a bias of zero.
    ({'eta': 0.0, 'scaled': True}, {'w': [3.0, 4.0], 'bias': [0.0, 2.0]}),
    # dbahri/universal_sam.
    ({'scaled': True}, {'w': [3.01, 4.01], 'bias': [0.01, 2.01]}),
    # The authors' program for a parameter without "weight" in its name.
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
  # The radius is relative to the weights.
  relative = [
    (found[name] - WEIGHTS[name])[scale > 0] / scale[scale > 0]
    for name, scale in scales.items()
  ]
  total = np.linalg.norm(np.concatenate(relative))
  np.testing.assert_allclose(total, 0.5, rtol=1e-10)
