"""LookSAM and Look-LayerSAM."""

import numpy as np
import pytest

import optax_sam
from tests.conformance.reference import Recording, Replay
from tests.methods import checks
from tests.oracles import look_sam

SAM, LAYER_SAM = optax_sam.look_sam, optax_sam.look_layer_sam
EVERY_SECOND = {'period': 2}

test_follows_the_rule = checks.follows(look_sam.CASES)
test_golden_values = checks.golden(
  SAM,
  look_sam.look_sam,
  (EVERY_SECOND, (0.39224498, -0.26309373, -0.01732747, 0.92323306)),
  (
    {'period': 2, 'per_leaf': True},
    (0.39498236, -0.28112604, -0.00562512, 0.93522009),
  ),
)
test_golden_values_by_the_layer = checks.golden(
  LAYER_SAM,
  look_sam.look_layer_sam,
  (EVERY_SECOND, (0.39161153, -0.26203946, -0.02492001, 0.92464988)),
  (
    {'period': 2, 'rule': 'layer'},
    (0.39010693, -0.25940438, -0.02268373, 0.92064137),
  ),
  (
    {'period': 2, 'rule': 'unit'},
    (0.39068782, -0.25993534, -0.01160405, 0.91613164),
  ),
)
test_is_sam = checks.is_sam(SAM, {'period': 1})
test_leaf_without_gradient = checks.leaf_without_gradient(
  SAM, rho=0.5, period=2, per_leaf=True
)


@pytest.mark.parametrize('rule', ['global', 'layer', 'unit'])
@pytest.mark.usefixtures('float64')
def test_a_layer_without_gradient_is_not_perturbed(rule):
  checks.leaf_without_gradient(LAYER_SAM, rho=0.5, period=2, rule=rule)()


@pytest.mark.usefixtures('float64')
def test_a_zero_gradient_gives_the_base_step():
  """A public port divides 0 by 0 here."""
  method = SAM(0.1, period=5, alpha=0.7)
  checks.assert_zero_gradient_is_base('P3z_looksam_samhub', method)


@pytest.mark.usefixtures('float64')
def test_radius_and_policy_use_the_count_before_its_increment():
  radius = lambda t: 0.1 * (t + 1).astype(float)
  replay = Replay(
    Recording('P1_sam_davda54'), SAM(radius, period=3), watched=True
  )
  lengths = [np.linalg.norm(step.epsilon) for step in replay.run()]
  expected = [0.1 * (t + 1) if t % 3 == 0 else 0 for t in range(12)]
  np.testing.assert_allclose(lengths, expected, rtol=1e-10)
