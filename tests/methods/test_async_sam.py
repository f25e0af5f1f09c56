"""AsyncSAM."""

import optax_sam
from tests.methods import checks
from tests.oracles import async_sam

test_follows_the_rule = checks.follows(async_sam.CASES)
test_golden_values = checks.golden(
  optax_sam.async_sam,
  async_sam.async_sam,
  ({}, (0.40585046, -0.27387821, -0.00927556, 0.91453495)),
)
test_is_base = checks.is_base(optax_sam.async_sam, {'rho': 0.0})
test_factor_on_the_loss = checks.factor_on_the_loss(
  optax_sam.async_sam, changes_epsilon=False
)
