"""Frob-SAM."""

import optax_sam
from tests.methods import checks
from tests.oracles import frob_sam

test_follows_the_rule = checks.follows(frob_sam.CASES)
test_golden_values = checks.golden(
  optax_sam.frob_sam,
  frob_sam.frob_sam,
  ({'key': 0}, (0.41046758, -0.28306559, -0.02107315, 0.92256140)),
  draws=True,
)
test_is_base = checks.is_base(
  optax_sam.frob_sam, {'rho': 0.0, 'key': 0}, {'penalty': 0.0, 'key': 0}
)
