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
