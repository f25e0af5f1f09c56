"""SAGM."""

import optax_sam
from tests.methods import checks
from tests.oracles import sagm

test_follows_the_rule = checks.follows(sagm.CASES)
test_is_the_base_optimizer = checks.is_base(
  optax_sam.sagm, {'alpha': 0.0, 'rho': 0.0}
)
test_leaf_without_gradient = checks.leaf_without_gradient(optax_sam.sagm)
