"""Unnormalized SAM."""

import optax_sam
from tests.methods import checks
from tests.oracles import unnormalized_sam

test_follows_the_rule = checks.follows(unnormalized_sam.CASES)
test_golden_values = checks.golden(
  optax_sam.unnormalized_sam,
  unnormalized_sam.unnormalized_sam,
  ({'rho': 0.05}, (0.34661448, -0.18471927, 0.05528834, 0.82810515)),
)
test_is_base = checks.is_base(optax_sam.unnormalized_sam, {'rho': 0.0})
test_factor_on_the_loss = checks.factor_on_the_loss(
  optax_sam.unnormalized_sam, rho=0.05, changes_epsilon=True
)
