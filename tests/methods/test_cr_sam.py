"""CR-SAM."""

import optax_sam
from tests.methods import checks
from tests.oracles import cr_sam

test_follows_the_rule = checks.follows(cr_sam.CASES)
test_golden_values = checks.golden(
  optax_sam.cr_sam,
  cr_sam.cr_sam,
  ({}, (0.38616959, -0.24467496, 0.00872367, 0.87757093)),
)
test_is_base = checks.is_base(optax_sam.cr_sam, {'rho': 0.0})
test_is_sam = checks.is_sam(optax_sam.cr_sam, {'gamma': 0.0, 'beta': 0.0})
test_factor_on_the_loss = checks.factor_on_the_loss(
  optax_sam.cr_sam, changes_epsilon=False
)
