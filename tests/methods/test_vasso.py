"""VaSSO."""

import optax_sam
from tests.methods import checks
from tests.oracles import vasso

test_follows_the_rule = checks.follows(vasso.CASES)
test_follows_the_rule_with_a_mask = checks.follows_with_a_mask(vasso.CASES[1])
test_is_sam = checks.is_sam(optax_sam.vasso, {'theta': 1.0})
test_leaf_without_gradient = checks.leaf_without_gradient(optax_sam.vasso)
