"""GSAM."""

import optax_sam
from tests.methods import checks
from tests.oracles import gsam

test_follows_the_rule = checks.follows(gsam.CASES)
test_golden_values = checks.golden(
  optax_sam.gsam,
  gsam.gsam,
  ({}, (0.39836672, -0.26483286, -0.00635992, 0.90579709)),
)
test_is_sam = checks.is_sam(optax_sam.gsam, {'alpha': 0.0})
test_is_base = checks.is_base(optax_sam.gsam, {'rho': 0.0})
