"""GCSAM."""

import optax_sam
from tests.methods import checks
from tests.oracles import gcsam

test_follows_the_rule = checks.follows(gcsam.CASES)
test_follows_the_rule_with_a_mask = checks.follows_with_a_mask(gcsam.CASES[1])
test_is_the_base_optimizer = checks.is_base(
  optax_sam.gcsam, {'order': 'official', 'rho': 0.0}
)
test_leaf_without_gradient = checks.leaf_without_gradient(optax_sam.gcsam)
