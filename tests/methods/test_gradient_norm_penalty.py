"""Gradient-norm penalty."""

import optax_sam
from tests.methods import checks
from tests.oracles import gradient_norm_penalty

GNP = optax_sam.gradient_norm_penalty

test_follows_the_rule = checks.follows(gradient_norm_penalty.CASES)
test_golden_values = checks.golden(
  GNP,
  gradient_norm_penalty.gradient_norm_penalty,
  ({}, (0.39136535, -0.25318363, 0.00195438, 0.88787700)),
  (
    {'normalize_clean': True},
    (0.43217737, -0.32116042, -0.04356668, 1.00683518),
  ),
)
test_is_base = checks.is_base(GNP, {'alpha': 0.0})
test_is_sam = checks.is_sam(GNP, {'alpha': 1.0})
